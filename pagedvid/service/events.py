"""What a worker tells its callers: plain data, given on the worker's thread."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

GONE = "gone"


@dataclass(frozen=True)
class ChunkEvent:
    """The frames of a finished chunk."""

    id: str
    chunk_index: int
    first_frame: int
    """Index of the first of these frames in the video."""
    frames: np.ndarray
    """uint8 [frames, height, width, 3], or float32 latents [frames, C, rows, columns]."""
    is_last: bool
    stored_bytes: int
    """The most that the video's stream has held so far."""
    bf16_bytes: int
    """The same tokens as dense BF16."""


@dataclass(frozen=True)
class StateEvent:
    """A video is in another state now (engine/states.py), or `GONE`: the engine has forgotten it."""

    id: str
    state: str


@dataclass(frozen=True)
class FailureEvent:
    """A video ended without its frames; the others go on."""

    id: str
    kind: str
    """Name of the error's class."""
    message: str


@dataclass(frozen=True)
class RefusedEvent:
    """A prompt that was accepted could not be put into effect at the chunk boundary; the video goes on without it."""

    id: str
    prompt: str
    recache: bool
    kind: str
    """Name of the error's class."""
    message: str


@dataclass(frozen=True)
class RebuiltEvent:
    """The engine broke and was built again; its videos go on from their checkpoints, or anew with the same frames."""

    reason: str


@dataclass(frozen=True)
class LostEvent:
    """One of several workers has ended. Whoever hears this gives its videos to another one; see `Replicas`."""

    ids: frozenset[str]
    reason: str


VideoEvent = ChunkEvent | StateEvent | FailureEvent | RefusedEvent
Event = VideoEvent | RebuiltEvent | LostEvent

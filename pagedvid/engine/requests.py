"""What goes into the engine and what comes out of it. Plain data: no tensors of the cache, no page ids."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pagedvid.arguments import instance_of, whole_number
from pagedvid.errors import ConfigError
from pagedvid.shown import shown


@dataclass(frozen=True)
class VideoRequest:
    """One video to generate. `num_frames` is rounded up to whole chunks by the engine; surplus frames are cut off."""

    id: str
    """Free again as soon as the request has finished, failed or been cancelled."""
    prompt: str
    num_frames: int
    seed: int = 0
    inputs: Mapping[str, Any] = field(default_factory=dict)
    """What the model takes in addition to the prompt, by name; see the model's `prepare`."""

    def __post_init__(self) -> None:
        instance_of(str, "id of a request", self.id, "text such as 'a'", ConfigError)
        instance_of(str, "prompt of a request", self.prompt, "text such as 'a red circle'", ConfigError)
        for name, minimum in (("num_frames", 1), ("seed", None)):
            number = whole_number(
                f"{name} of request {shown(self.id)}", getattr(self, name), minimum, error=ConfigError
            )
            object.__setattr__(self, name, number)


@dataclass(frozen=True)
class ChunkOutput:
    """The clean frames of one finished chunk: uint8 [frames, height, width, 3], or float32 latents as `decode` says."""

    request_id: str
    chunk_index: int
    frames: np.ndarray
    is_last: bool
    stored_bytes: int
    """The most that the video's stream has held between two steps so far."""
    bf16_bytes: int
    """The same tokens as dense BF16."""


@dataclass(frozen=True)
class RequestFailure:
    """A request that ended without its video; the others go on."""

    request_id: str
    error: Exception
    """What was raised, fit to be shown and kept (engine/failures.py)."""


EngineOutput = ChunkOutput | RequestFailure


@dataclass(frozen=True)
class EngineStats:
    """Counters of the engine; reading them changes nothing."""

    num_waiting: int
    num_running: int
    num_finished: int
    num_failed: int
    num_chunks_done: int
    num_steps: int
    forward_seconds: float
    """Time inside the model's forward, attention and page encoding included."""
    step_seconds: float
    """Time of whole steps; the difference is bookkeeping, sampling and decoding."""

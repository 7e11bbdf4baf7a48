"""What goes into the engine and what comes out of it. Plain data: no tensors of the cache, no page ids."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pagedvid.arguments import instance_of, one_of, whole_number
from pagedvid.engine.scheduler import POLICIES
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
    """What the model takes besides the prompt, by name; see the model's `prepare`."""

    def __post_init__(self) -> None:
        instance_of(str, "id of a request", self.id, "text such as 'a'", ConfigError)
        instance_of(str, "prompt of a request", self.prompt, "text such as 'a red circle'", ConfigError)
        for name, minimum in (("num_frames", 1), ("seed", None)):
            number = whole_number(
                f"{name} of request {shown(self.id)}", getattr(self, name), minimum, error=ConfigError
            )
            object.__setattr__(self, name, number)


@dataclass(frozen=True)
class EngineSettings:
    """How the engine batches."""

    max_batch_tokens: int = 2048
    """Most packed tokens of one forward; a single chunk always runs."""
    policy: str = "fcfs"
    """One of `scheduler.POLICIES`."""
    max_concurrent: int | None = None
    """Most streams open at once; None: as many as the memory holds."""
    num_denoise_steps: int = 8
    reproducible: bool = False
    """Each video has its forwards to itself, so that its frames are the same to the last bit whatever else runs. This
    holds on one machine with one number of threads, one backend and one size of scratch."""

    def __post_init__(self) -> None:
        one_of(tuple(POLICIES), "policy", self.policy, ConfigError)
        for name in ("max_batch_tokens", "max_concurrent", "num_denoise_steps"):
            if name != "max_concurrent" or self.max_concurrent is not None:
                object.__setattr__(self, name, whole_number(name, getattr(self, name), 1, error=ConfigError))


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
    """Where the engine stands; every number is derived from its own state and the cache's."""

    num_waiting: int
    num_running: int
    num_finished: int
    num_failed: int
    num_chunks_done: int
    num_steps: int
    forward_seconds: float
    """Time inside the model's forward, attention and page encoding included."""
    step_seconds: float
    """Time of whole steps; the difference is the engine's own bookkeeping, sampling and decoding."""

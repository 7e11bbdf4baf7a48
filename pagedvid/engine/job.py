"""A job: one request on its way through chunks, denoise steps and commit passes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pagedvid.cache.stream import Stream
from pagedvid.engine.requests import VideoRequest


@dataclass(eq=False)
class Job:
    """The state of one running request. `stream` is its claim on the cache."""

    number: int
    """Order of arrival."""
    request: VideoRequest
    condition: Any
    stream: Stream
    num_chunks: int
    num_denoise_steps: int
    latents: Tensor
    """The chunk being made, [chunk_tokens, C]."""
    chunk_index: int = 0
    step_index: int = 0
    """Denoise steps of this chunk already done; equal to num_denoise_steps when the commit pass is due."""
    last_step: int = -1
    """The engine step in which it last ran."""
    num_frames_out: int = 0

    @property
    def is_commit_due(self) -> bool:
        """Whether the chunk is clean and waits for its commit pass."""
        return self.step_index == self.num_denoise_steps

    @property
    def is_last_chunk(self) -> bool:
        """Whether no later chunk will read this one; it is then never committed."""
        return self.chunk_index == self.num_chunks - 1

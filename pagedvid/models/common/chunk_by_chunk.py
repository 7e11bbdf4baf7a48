"""The simplest schedule: a chunk is denoised, then committed, then the next one begins.

The last chunk has no reader and is not committed. All branches of a video run in the same rounds, each with a range of
its own, whose role has the branch's name. Old chunks leave with the sliding window.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor

from pagedvid.cache.window import Window
from pagedvid.engine.protocol import ModelGeometry
from pagedvid.engine.schedule import Advance, Range, Round, Schedule
from pagedvid.errors import ConfigError


class ChunkByChunk(ABC):
    """The rest of `VideoModel` for a model that gives prompts, noise levels and noise."""

    geometry: ModelGeometry
    default_denoise_steps: int = 8
    """Of a chunk, unless settings say otherwise."""

    @abstractmethod
    def encode_prompt(self, prompt: str) -> Any:
        """Condition of a prompt. Raises `PromptError` when nothing in it is known; warns about single unknown words."""

    @abstractmethod
    def noise_levels(self, num_denoise_steps: int) -> tuple[float, ...]:
        """num_denoise_steps + 1 falling levels, from 1.0, pure noise, to 0.0, the level of the commit pass."""

    @abstractmethod
    def initial_noise(self, seed: int, chunk_index: int) -> Tensor:
        """Noise of one chunk, [chunk_tokens, C]; depends on seed and chunk only, not on device or batch."""

    def prepare(self, prompt: str, inputs: Mapping[str, Any], num_frames: int) -> Any:
        """The prompt's condition; these models take nothing else."""
        if inputs:
            raise ConfigError(f"{type(self).__name__} takes a prompt only; remove {', '.join(sorted(inputs))}")
        return self.encode_prompt(prompt)

    def schedule(self, condition: Any, num_frames: int, num_denoise_steps: int | None, window: Window) -> Schedule:
        """Chunk by chunk, whole chunks that hold at least `num_frames`."""
        levels = self.noise_levels(num_denoise_steps or self.default_denoise_steps)
        return chunk_by_chunk(self.geometry, num_frames, levels, window)

    def initial_latents(self, condition: Any, seed: int, chunk_index: int) -> Tensor:
        """Noise; nothing else is given."""
        return self.initial_noise(seed, chunk_index)


def chunk_by_chunk(geometry: ModelGeometry, num_frames: int, levels: Sequence[float], window: Window) -> Schedule:
    """The schedule; `levels` fall from pure noise to clean, the last one is that of the commit pass."""
    size, num_chunks = geometry.frames_per_chunk, -(-num_frames // geometry.frames_per_chunk)

    def rounds() -> Iterator[Round]:
        for chunk in range(num_chunks):
            frames, is_last = range(chunk * size, (chunk + 1) * size), chunk == num_chunks - 1
            for step, (level, next_level) in enumerate(pairwise(levels)):
                is_clean = step == len(levels) - 2
                yield Round(
                    tuple(Range(frames, level, branch, branch) for branch in geometry.branches),
                    (Advance(chunk, tuple(range(len(geometry.branches))), level, next_level),),
                    finished=(chunk,) if is_clean else (),
                )
            if not is_last:
                passes = tuple(Range(frames, levels[-1], branch, branch, commits=True) for branch in geometry.branches)
                yield Round(passes, forgets=(chunk,))

    return Schedule(rounds, window, num_commits=num_chunks - 1, max_range_frames=size)

"""The simplest schedule: a chunk is denoised, then committed, then the next one begins.

Given chunks come first, and are only committed. The last chunk has no reader and is not committed. All branches of a
video run in the same rounds, each with a range of its own, whose role has the branch's name. Old chunks leave with the
sliding window. The functions at the end are for every model whose ranges are whole chunks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pagedvid.cache.window import Window
from pagedvid.engine.protocol import ModelGeometry, PrefixFormat
from pagedvid.engine.schedule import Advance, Range, Round, Schedule
from pagedvid.errors import ConfigError, ShapeError


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

    def prefix_format(self, window: Window) -> PrefixFormat | None:
        """None: it goes on from no frames."""
        return None

    def schedule(self, condition: Any, num_frames: int, num_denoise_steps: int | None, window: Window) -> Schedule:
        """Chunk by chunk, whole chunks that hold at least `num_frames`."""
        levels = self.noise_levels(num_denoise_steps or self.default_denoise_steps)
        return chunk_by_chunk(self.geometry, num_frames, levels, window)

    def initial_latents(self, condition: Any, seed: int, chunk_index: int) -> Tensor:
        """Noise; nothing else is given."""
        return self.initial_noise(seed, chunk_index)


def chunk_by_chunk(
    geometry: ModelGeometry,
    num_frames: int,
    levels: Sequence[float],
    window: Window,
    num_prefix_chunks: int = 0,
    prefix_level: float = 0.0,
) -> Schedule:
    """The schedule of `num_frames` latent frames after the given chunks.

    `levels` fall from pure noise to clean; the last one is that of the commit pass, `prefix_level` that of the given
    chunks.
    """
    size = geometry.frames_per_chunk
    num_chunks = num_prefix_chunks - (-num_frames // size)

    def commit(chunk: int, level: float) -> Round:
        frames = range(chunk * size, (chunk + 1) * size)
        passes = tuple(Range(frames, level, branch, branch, commits=True) for branch in geometry.branches)
        return Round(passes, forgets=(chunk,))

    def rounds() -> Iterator[Round]:
        for chunk in range(num_prefix_chunks):
            yield commit(chunk, prefix_level)
        for chunk in range(num_prefix_chunks, num_chunks):
            frames = range(chunk * size, (chunk + 1) * size)
            for step, (level, next_level) in enumerate(pairwise(levels)):
                is_clean = step == len(levels) - 2
                yield Round(
                    tuple(Range(frames, level, branch, branch) for branch in geometry.branches),
                    (Advance(chunk, tuple(range(len(geometry.branches))), level, next_level),),
                    finished=(chunk,) if is_clean else (),
                )
            if chunk < num_chunks - 1:
                yield commit(chunk, levels[-1])

    return Schedule(
        rounds, window, num_commits=num_chunks - 1, max_range_frames=size, first_frame=num_prefix_chunks * size
    )


def chunk_noise(num_tokens: int, channels: int, *numbers: int) -> Tensor:
    """Standard normal numbers, float32 [num_tokens, channels] on the CPU.

    They depend on `numbers` only (seed, chunk index, ...): every device and every batch gets the same ones.
    """
    # A seed sequence, because neighbouring integers as seeds would give related first numbers.
    state = int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])
    return torch.randn(num_tokens, channels, generator=torch.Generator().manual_seed(state), dtype=torch.float32)


def check_whole_chunks(model_name: str, geometry: ModelGeometry, latents_TC: Tensor, ranges: Sequence[Range]) -> None:
    """Raises ShapeError unless every range is a whole chunk and the latents are those of all ranges."""
    sizes, size = [len(part.frames) * geometry.tokens_per_frame for part in ranges], geometry.chunk_tokens
    if any(num_tokens != size for num_tokens in sizes) or len(latents_TC) != size * len(ranges):
        raise ShapeError(
            f"ranges of {sizes} tokens for {len(latents_TC)} packed tokens; every range of {model_name} is one "
            f"chunk of {size}"
        )

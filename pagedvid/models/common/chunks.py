"""What models have in common whose ranges are whole chunks: how noise is drawn, and what a packed forward must hold."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pagedvid.engine.protocol import ModelGeometry
from pagedvid.engine.schedule import Range
from pagedvid.errors import ShapeError


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

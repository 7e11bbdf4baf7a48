"""Latent frames as tokens: a token is a patch of 2 x 2 latents, its numbers in the order (row, column, channel).

Axes: C channels, F frames, H and W latent rows and columns, T tokens in (frame, row, column) order.
"""

from __future__ import annotations

from torch import Tensor

from pagedvid.models.magi1.spec import PATCH, FrameConfig


def tokens_of(latents_CFHW: Tensor) -> Tensor:
    """[C, F, H, W] -> [T, 4 C]."""
    patches = latents_CFHW.unflatten(3, (-1, PATCH)).unflatten(2, (-1, PATCH))  # C F rows a columns b
    return patches.permute(1, 2, 4, 3, 5, 0).flatten(3, 5).flatten(0, 2).contiguous()


def frames_of(latents_TC: Tensor, frames: FrameConfig) -> Tensor:
    """[T, 4 C] -> [C, F, H, W]."""
    patches = latents_TC.unflatten(1, (PATCH, PATCH, -1)).unflatten(0, (-1, frames.rows, frames.columns))
    return patches.permute(5, 0, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3).contiguous()

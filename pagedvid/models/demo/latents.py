"""Frames as latents: 8 x 8 pixel patches, scaled to -1..1, in (frame, row, column) order."""

from __future__ import annotations

from torch import Tensor

from pagedvid.models.demo.world import FRAME_SIZE

PATCH_SIZE = 8
"""Height and width of a patch in pixels."""
GRID_SIZE = FRAME_SIZE // PATCH_SIZE
TOKENS_PER_FRAME = GRID_SIZE * GRID_SIZE
LATENT_CHANNELS = 3 * PATCH_SIZE * PATCH_SIZE


def patches_of(images_FHWC: Tensor) -> Tensor:
    """Cut images [..., F, 32, 32, 3] into patches [..., F * 16, 192]; values are kept as they are."""
    *lead, frames, _, _, channels = images_FHWC.shape
    cut = images_FHWC.reshape(*lead, frames, GRID_SIZE, PATCH_SIZE, GRID_SIZE, PATCH_SIZE, channels)
    return cut.transpose(-4, -3).reshape(*lead, frames * TOKENS_PER_FRAME, LATENT_CHANNELS)


def images_of(patches_TC: Tensor) -> Tensor:
    """The inverse of `patches_of`: patches [..., F * 16, 192] to images [..., F, 32, 32, 3]."""
    *lead, tokens, _ = patches_TC.shape
    frames = tokens // TOKENS_PER_FRAME
    cut = patches_TC.reshape(*lead, frames, GRID_SIZE, GRID_SIZE, PATCH_SIZE, PATCH_SIZE, 3)
    return cut.transpose(-4, -3).reshape(*lead, frames, FRAME_SIZE, FRAME_SIZE, 3)

"""The demo model's integers, the latents of its frames, and its noise levels."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pagedvid.engine.protocol import ModelGeometry
from pagedvid.errors import ConfigError
from pagedvid.models.demo.world import FRAME_SIZE

PATCH_SIZE = 8
"""Height and width of a patch in pixels."""
GRID_SIZE = FRAME_SIZE // PATCH_SIZE
TOKENS_PER_FRAME = GRID_SIZE * GRID_SIZE
LATENT_CHANNELS = 3 * PATCH_SIZE * PATCH_SIZE
NUM_DENOISE_STEPS = 8
"""Of a chunk, unless settings say otherwise."""
LEVEL_SHIFT = 5.0
"""How far noise levels crowd towards pure noise, where place and colour of the thing are decided."""


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes of the network; stored with the weights."""

    latent_channels: int = LATENT_CHANNELS
    chunk_tokens: int = 128
    width: int = 192
    num_heads: int = 3
    num_layers: int = 6
    mlp_ratio: int = 4

    @property
    def head_dim(self) -> int:
        """Channels of one head."""
        return self.width // self.num_heads

    def geometry(self, tokens_per_frame: int, frames_per_chunk: int) -> ModelGeometry:
        """The integers that memory depends on."""
        return ModelGeometry(
            num_layers=self.num_layers,
            num_query_heads=self.num_heads,
            num_kv_heads=self.num_heads,
            head_dim=self.head_dim,
            tokens_per_frame=tokens_per_frame,
            frames_per_chunk=frames_per_chunk,
        )


def geometry_of(config: TransformerConfig) -> ModelGeometry:
    """Of the built-in model with a network of these sizes."""
    return config.geometry(TOKENS_PER_FRAME, config.chunk_tokens // TOKENS_PER_FRAME)


def noise_levels(num_denoise_steps: int, shift: float = LEVEL_SHIFT) -> tuple[float, ...]:
    """Falling levels from 1.0 to 0.0, crowded towards 1.0 by a `shift` above 1. Raises ConfigError for less than one
    step."""
    if num_denoise_steps < 1:
        raise ConfigError(f"num_denoise_steps is {num_denoise_steps}; it must be at least 1")
    even = [1 - step / num_denoise_steps for step in range(num_denoise_steps + 1)]
    return tuple(shift * level / (1 + (shift - 1) * level) for level in even)


def patches_of(images_FHWC: Tensor) -> Tensor:
    """Cut images [..., F, 32, 32, 3] into patches [..., F * 16, 192] in (frame, row, column) order."""
    *lead, frames, _, _, channels = images_FHWC.shape
    cut = images_FHWC.reshape(*lead, frames, GRID_SIZE, PATCH_SIZE, GRID_SIZE, PATCH_SIZE, channels)
    return cut.transpose(-4, -3).reshape(*lead, frames * TOKENS_PER_FRAME, LATENT_CHANNELS)


def images_of(patches_TC: Tensor) -> Tensor:
    """The inverse of `patches_of`: patches [..., F * 16, 192] to images [..., F, 32, 32, 3]."""
    *lead, tokens, _ = patches_TC.shape
    frames = tokens // TOKENS_PER_FRAME
    cut = patches_TC.reshape(*lead, frames, GRID_SIZE, GRID_SIZE, PATCH_SIZE, PATCH_SIZE, 3)
    return cut.transpose(-4, -3).reshape(*lead, frames, FRAME_SIZE, FRAME_SIZE, 3)

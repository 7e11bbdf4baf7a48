"""Sizes of both networks of HY-WorldPlay, and of the frames that they were published for."""

from __future__ import annotations

from dataclasses import dataclass

from pagedvid.engine.protocol import ModelGeometry
from pagedvid.models.common.latent_grid import LatentGrid
from pagedvid.models.worldplay.memory import BLOCK_FRAMES

LATENT_SIZE_8B = (30, 52)
"""Rows and columns of a latent frame: 480 x 832 pixels."""
LATENT_SIZE_WAN = (44, 80)
"""Rows and columns of a latent frame: 704 x 1280 pixels."""


@dataclass(frozen=True)
class Config8B:
    """Sizes of the network. The defaults are those of the published model (HunyuanVideo-1.5)."""

    latent_channels: int = 32
    patch: tuple[int, int, int] = (1, 1, 1)
    width: int = 2048
    num_heads: int = 16
    num_layers: int = 54
    mlp_width: int = 8192
    rope_channels: tuple[int, int, int] = (16, 56, 56)
    rope_theta: float = 256.0
    text_channels: int = 3584
    glyph_channels: int = 1472
    glyph_hidden: tuple[int, int] = (2048, 2048)
    vision_channels: int = 1152

    @property
    def head_dim(self) -> int:
        """Channels of one head."""
        return self.width // self.num_heads


@dataclass(frozen=True)
class ConfigWan5B:
    """Sizes of the network. The defaults are those of the published model (Wan 2.2 TI2V 5B)."""

    latent_channels: int = 48
    patch: tuple[int, int, int] = (1, 2, 2)
    num_heads: int = 24
    head_dim: int = 128
    num_layers: int = 30
    mlp_width: int = 14336
    text_channels: int = 4096
    rope_theta: float = 10000.0

    @property
    def width(self) -> int:
        """Channels of a token inside the network."""
        return self.num_heads * self.head_dim

    @property
    def rope_channels(self) -> tuple[int, int, int]:
        """Channels rotated by time, row, column."""
        spatial = 2 * (self.head_dim // 6)
        return self.head_dim - 2 * spatial, spatial, spatial


def geometry_of(config: Config8B | ConfigWan5B, grid: LatentGrid) -> ModelGeometry:
    """The integers of a network at a resolution."""
    return ModelGeometry(
        num_layers=config.num_layers,
        num_query_heads=config.num_heads,
        num_kv_heads=config.num_heads,
        head_dim=config.head_dim,
        tokens_per_frame=grid.tokens_per_frame,
        frames_per_chunk=BLOCK_FRAMES,
    )

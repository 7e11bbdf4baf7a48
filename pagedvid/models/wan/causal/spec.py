"""How Self-Forcing, CausVid, Krea and LongLive run a Wan transformer: chunk by chunk, in a few distilled steps.

Axes: T tokens of a chunk, K channels of a token, C channels of its latents in between, K of them the sample.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from pagedvid.cache.window import Window
from pagedvid.engine.protocol import ModelGeometry
from pagedvid.engine.schedule import Schedule
from pagedvid.errors import ConfigError
from pagedvid.models.common.chunk_by_chunk import chunk_by_chunk
from pagedvid.models.wan.base.spec import TransformerShape, WanSettings
from pagedvid.models.wan.causal.renoising import Renoising
from pagedvid.models.wan.causal.wan_unipc import WanUniPC


class Sampler(Protocol):
    """How a chunk gets from noise to clean latents."""

    @property
    def noise_levels(self) -> tuple[float, ...]:
        """Of the distilled steps, from 1 down, and 0, that of the commit pass."""
        ...

    @property
    def num_draws(self) -> int:
        """How many times as many random numbers as its latents a chunk takes."""
        ...

    def timestep(self, noise_level: float) -> float:
        """What the transformer is told."""
        ...

    def begin(self, noise_TC: Tensor, /) -> Tensor:
        """What a chunk starts from, [T, C], of its draws, [T, num_draws K]."""
        ...

    def advance(self, latents_TC: Tensor, velocity_TK: Tensor, noise_level: float, next_noise_level: float) -> Tensor:
        """Latents [T, C] at the next level, from the velocity predicted at this one. The arguments are left as they
        are."""
        ...


SELF_FORCING = Renoising()


@dataclass(frozen=True, kw_only=True)
class WanCausalSettings(WanSettings):
    """The defaults are those of Self-Forcing (configs/self_forcing_dmd.yaml), 480 x 832 pixels.

    Its window is the 21 frames that its cache holds; longer videos roll.
    """

    name: str = "self-forcing"
    latent_rows: int = 60
    latent_columns: int = 104
    frames_per_chunk: int = 3
    fps: float = 16.0
    window_frames: int | None = 21
    sampler: Sampler = SELF_FORCING


WAN_1_3B = TransformerShape(num_layers=30, num_heads=12, head_dim=128)
WAN_5B = TransformerShape(num_layers=30, num_heads=24, head_dim=128)
WAN_14B = TransformerShape(num_layers=40, num_heads=40, head_dim=128)

PUBLISHED: dict[str, tuple[TransformerShape, WanCausalSettings]] = {
    "self-forcing": (WAN_1_3B, WanCausalSettings()),
    # CausVid: configs/wan_causal_dmd.yaml, whose steps are taken as they are (warp_denoising_step false).
    "causvid": (
        WAN_1_3B,
        WanCausalSettings(name="causvid", sampler=Renoising((1000.0, 757.0, 522.0), shift=1.0)),
    ),
    # Krea: configs/self_forcing_server_14b.yaml; release_server.py keeps 3 frames in addition to the current 3, with
    # positions from 0. It recomputes their keys for every chunk; here they stay as they were stored.
    "krea-14b": (
        WAN_14B,
        WanCausalSettings(
            name="krea-14b",
            sampler=Renoising((1000.0, 937.0, 833.0, 625.0), shift=1.0),
            window_frames=6,
            positions="window",
        ),
    ),
    # LongLive 2.0, NVlabs/LongLive: configs/inference.yaml, on Wan 2.2 TI2V 5B, 704 x 1280 pixels.
    "longlive-2-5b": (
        WAN_5B,
        WanCausalSettings(
            name="longlive-2-5b",
            latent_rows=44,
            latent_columns=80,
            pixels_per_latent=16,
            frames_per_chunk=8,
            fps=24.0,
            sink_frames=8,
            window_frames=32,
            sampler=WanUniPC(shift=5.0, num_steps=4),
        ),
    ),
}
"""Sizes and settings by model."""


def wan_causal_schedule(
    settings: WanCausalSettings,
    geometry: ModelGeometry,
    num_frames: int,
    num_denoise_steps: int | None,
    window: Window,
    num_prefix_chunks: int = 0,
) -> Schedule:
    """Chunk by chunk in the distilled steps, after the given chunks, over the settings' or else the configured window.

    Raises ConfigError for another number of steps.
    """
    levels = settings.sampler.noise_levels
    if num_denoise_steps not in (None, len(levels) - 1):
        raise ConfigError(
            f"num_denoise_steps is {num_denoise_steps}; {settings.name} was distilled to {len(levels) - 1} steps"
        )
    return chunk_by_chunk(geometry, num_frames, levels, settings.window(window), num_prefix_chunks)

"""How Self-Forcing, CausVid and Krea run a Wan 2.1 transformer: chunk by chunk, in a few distilled steps."""

from __future__ import annotations

from dataclasses import dataclass

from pagedvid.cache.window import Window
from pagedvid.engine.protocol import ModelGeometry
from pagedvid.engine.schedule import Schedule
from pagedvid.errors import ConfigError
from pagedvid.models.common.chunk_by_chunk import chunk_by_chunk
from pagedvid.models.wan.base.spec import TransformerShape, WanSettings

MAX_TIMESTEP = 1000.0


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
    denoise_timesteps: tuple[float, ...] = (1000.0, 750.0, 500.0, 250.0)
    """What the model was distilled to, before the shift; falling, 1000 is pure noise."""
    shift: float = 5.0
    """How far timesteps crowd towards noise; 1: not at all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        steps = self.denoise_timesteps
        if not steps or steps[0] != MAX_TIMESTEP or list(steps) != sorted(set(steps), reverse=True) or steps[-1] <= 0:
            raise ConfigError(
                f"denoise_timesteps are {steps}; they must fall from {MAX_TIMESTEP:g}, pure noise, and stay above 0"
            )
        if self.shift <= 0:
            raise ConfigError(f"shift is {self.shift}; it must be above 0")

    @property
    def noise_levels(self) -> tuple[float, ...]:
        """Shifted noise levels of the steps, from 1 down, and 0, that of the commit pass.

        With x = timestep / 1000 a level is shift x / (1 + (shift - 1) x): the entry of Self-Forcing's scheduler of
        1000 sigmas that its `warp_denoising_step` looks up.
        """
        even = (timestep / MAX_TIMESTEP for timestep in self.denoise_timesteps)
        return (*(self.shift * level / (1 + (self.shift - 1) * level) for level in even), 0.0)


WAN_1_3B = TransformerShape(num_layers=30, num_heads=12, head_dim=128)
WAN_14B = TransformerShape(num_layers=40, num_heads=40, head_dim=128)

PUBLISHED: dict[str, tuple[TransformerShape, WanCausalSettings]] = {
    "self-forcing": (WAN_1_3B, WanCausalSettings()),
    # CausVid: configs/wan_causal_dmd.yaml, whose steps are taken as they are (warp_denoising_step false).
    "causvid": (
        WAN_1_3B,
        WanCausalSettings(name="causvid", denoise_timesteps=(1000.0, 757.0, 522.0), shift=1.0),
    ),
    # Krea: configs/self_forcing_server_14b.yaml; release_server.py keeps 3 frames in addition to the current 3, with
    # positions from 0. It recomputes their keys for every chunk; here they stay as they were stored.
    "krea-14b": (
        WAN_14B,
        WanCausalSettings(
            name="krea-14b",
            denoise_timesteps=(1000.0, 937.0, 833.0, 625.0),
            shift=1.0,
            window_frames=6,
            positions="window",
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
    num_distilled = len(settings.denoise_timesteps)
    if num_denoise_steps not in (None, num_distilled):
        raise ConfigError(
            f"num_denoise_steps is {num_denoise_steps}; {settings.name} was distilled to {num_distilled} steps"
        )
    return chunk_by_chunk(geometry, num_frames, settings.noise_levels, settings.window(window), num_prefix_chunks)

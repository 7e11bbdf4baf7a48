"""How Self-Forcing, CausVid, Krea and their kin run a Wan 2.1 transformer: chunk by chunk, in a few distilled steps."""

from __future__ import annotations

from dataclasses import dataclass

from pagedvid.errors import ConfigError
from pagedvid.models.wan.base.settings import WanSettings

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

"""The sampler of Self-Forcing, CausVid and Krea: the clean chunk is predicted, and gets new noise for the next level.

A step predicts clean = x - level * velocity and goes to (1 - next) * clean + next * noise (`add_noise` of
Self-Forcing's scheduler). So that this noise depends on seed, chunk and step only, and not on what else is in the
batch, it is drawn with the chunk and travels in its latents:

    channels of a token    | chunk | noise of step 2 | noise of step 3 | ... |
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pagedvid.errors import ConfigError

MAX_TIMESTEP = 1000.0


@dataclass(frozen=True)
class Renoising:
    """The defaults are those of Self-Forcing (configs/self_forcing_dmd.yaml). Raises ConfigError."""

    timesteps: tuple[float, ...] = (1000.0, 750.0, 500.0, 250.0)
    """What the model was distilled to, before the shift; falling, 1000 is pure noise."""
    shift: float = 5.0
    """How far timesteps crowd towards noise; 1: not at all."""

    def __post_init__(self) -> None:
        steps = self.timesteps
        if not steps or steps[0] != MAX_TIMESTEP or list(steps) != sorted(set(steps), reverse=True) or steps[-1] <= 0:
            raise ConfigError(
                f"timesteps are {steps}; they must fall from {MAX_TIMESTEP:g}, pure noise, and stay above 0"
            )
        if self.shift <= 0:
            raise ConfigError(f"shift is {self.shift}; it must be above 0")

    @property
    def noise_levels(self) -> tuple[float, ...]:
        """Shifted noise levels of the steps, from 1 down, and 0, that of the commit pass.

        With x = timestep / 1000 a level is shift x / (1 + (shift - 1) x): the entry of Self-Forcing's scheduler of
        1000 sigmas that its `warp_denoising_step` looks up.
        """
        even = (timestep / MAX_TIMESTEP for timestep in self.timesteps)
        return (*(self.shift * level / (1 + (self.shift - 1) * level) for level in even), 0.0)

    @property
    def num_draws(self) -> int:
        """One for every step."""
        return len(self.timesteps)

    def timestep(self, noise_level: float) -> float:
        """What the transformer is told."""
        return noise_level * MAX_TIMESTEP

    def begin(self, noise_TC: Tensor) -> Tensor:
        """The draws as they are."""
        return noise_TC

    def advance(self, latents_TC: Tensor, velocity_TK: Tensor, noise_level: float, next_noise_level: float) -> Tensor:
        """The predicted clean chunk, made as noisy as the next level by the noise drawn for it."""
        channels = velocity_TK.shape[1]
        advanced = latents_TC.clone()
        advanced[:, :channels] -= noise_level * velocity_TK
        if next_noise_level > 0:
            draw = self.noise_levels.index(next_noise_level)
            noise = latents_TC[:, draw * channels : (draw + 1) * channels]
            advanced[:, :channels].mul_(1 - next_noise_level).add_(noise, alpha=next_noise_level)
        return advanced

"""The sampler of LongLive 2.0: UniPC with the noise levels of Wan's own scheduler, in a few distilled steps.

The steps are those of models/wan/base/unipc.py. Wan's scheduler (wan/utils/fm_solvers_unipc.py) spaces its levels
evenly between 0.999 and 0 before they are shifted; that of diffusers, between 1 and 0.001.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pagedvid.models.wan.base.unipc import NUM_TRAIN_TIMESTEPS, FlowUniPC


@dataclass(frozen=True)
class WanUniPC(FlowUniPC):
    """One setting of the sampler."""

    num_steps: int
    """That the model was distilled to."""

    @property
    def noise_levels(self) -> tuple[float, ...]:
        """Share of steps still to take before each step, from 1 down, and 0, that of the commit pass."""
        return tuple((self.num_steps - step) / self.num_steps for step in range(self.num_steps + 1))

    @property
    def num_draws(self) -> int:
        """One: steps add no noise."""
        return 1

    def sigma(self, noise_level: float) -> float:
        """Share of noise at a level, shifted towards 1; 0 at level 0. Rounded to float32 like the scheduler's table."""
        even = (1 - 1 / NUM_TRAIN_TIMESTEPS) * noise_level
        return float(np.float32(self.shift * even / (1 + (self.shift - 1) * even)))

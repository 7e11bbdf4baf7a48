"""The sampler of SkyReels-V2 and LongLive: second-order UniPC for flow matching, one step at a time and without state.

After "UniPC: A Unified Predictor-Corrector Framework" (arXiv 2302.04867), B(h) = exp(-h) - 1, predicting clean latents,
as diffusers' UniPCMultistepScheduler is set up for SkyReels-V2. A sample is x = (1 - sigma) * clean + sigma * noise;
with lambda = log((1 - sigma) / sigma), a step goes from lambda_s to lambda_t = lambda_s + h.

A step of a multistep method needs what earlier steps of the same chunk predicted. The scheduler object keeps that, one
per frame; here it travels in the chunk's latents, so that chunks of many videos can be at any step:

    channels of a token    | x | clean of the last step | clean of the one before | x where the last step began |

Noise levels are the share of steps still to take, from 1 to 0: that of step i of n is 1 - i / n.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import expm1, inf, log

import numpy as np
import torch
from torch import Tensor

NUM_TRAIN_TIMESTEPS = 1000
STATES = 4
"""Tensors that a chunk's latents hold, channel after channel; the first is the sample."""


@dataclass(frozen=True)
class FlowUniPC:
    """One setting of the sampler."""

    shift: float
    """`flow_shift`."""

    def sigma(self, noise_level: float) -> float:
        """Share of noise at a level, shifted towards 1; 0 at level 0, and just below 1 at level 1.

        Rounded to float32 like the scheduler's table: near pure noise the rounding decides what 1 - sigma is.
        """
        if noise_level <= 0:
            return 0.0
        even = 1 - (1 - 1 / NUM_TRAIN_TIMESTEPS) * (1 - noise_level)
        return float(np.float32(min(self.shift * even / (1 + (self.shift - 1) * even), 1 - 1e-6)))

    def timestep(self, noise_level: float) -> int:
        """What the transformer is told: a whole number below 1000, cut off as in the scheduler."""
        return int(self.sigma(noise_level) * NUM_TRAIN_TIMESTEPS)

    def level_of(self, timestep: int) -> float:
        """A noise level at which the transformer is told this timestep; below 0 for those that no level has."""
        sigma = (timestep + 0.5) / NUM_TRAIN_TIMESTEPS
        even = sigma / (self.shift - (self.shift - 1) * sigma)
        return 1 - (1 - even) / (1 - 1 / NUM_TRAIN_TIMESTEPS)

    def begin(self, noise_TK: Tensor) -> Tensor:
        """Latents that a chunk starts from, [T, STATES K]: nothing was predicted yet."""
        return torch.cat([noise_TK, noise_TK.new_zeros(len(noise_TK), (STATES - 1) * noise_TK.shape[1])], dim=1)

    def advance(self, latents_TC: Tensor, velocity_TK: Tensor, noise_level: float, next_noise_level: float) -> Tensor:
        """Latents [T, STATES K] at the next level, from the velocity predicted for the sample in them.

        The prediction first corrects the step that led here, then takes the next one. The first step and the last are
        of first order: at first nothing is known, and the last one ends on its own prediction.
        """
        x, last, before, start = latents_TC.chunk(STATES, dim=1)
        spacing = noise_level - next_noise_level
        num_taken = round((1 - noise_level) / spacing)
        earlier, since, now, then = (
            self.sigma(level)
            for level in (noise_level + 2 * spacing, noise_level + spacing, noise_level, next_noise_level)
        )
        clean = x - now * velocity_TK
        if num_taken == 1:
            x = _Stretch(since, now).corrected(start, last, clean)
        elif num_taken > 1:
            x = _Stretch(since, now).corrected(start, last, clean, _Earlier(earlier, before))
        is_second_order = num_taken > 0 and next_noise_level > 0
        following = _Stretch(now, then).predicted(x, clean, _Earlier(since, last) if is_second_order else None)
        return torch.cat([following, clean, last, x], dim=1)


@dataclass(frozen=True)
class _Earlier:
    """A clean prediction from before the stretch."""

    sigma: float
    clean: Tensor


@dataclass(frozen=True)
class _Stretch:
    """From one sigma to a smaller one."""

    start: float
    end: float

    @property
    def h(self) -> float:
        return _log_ratio(self.end) - _log_ratio(self.start)

    def predicted(self, x: Tensor, clean: Tensor, earlier: _Earlier | None) -> Tensor:
        """x at the end; `clean` was predicted at the start."""
        slope = 0.0 if earlier is None else 0.5 * self._slope(clean, earlier)
        return self._first_order(x, clean) - self._weight * slope

    def corrected(self, x: Tensor, clean: Tensor, clean_at_end: Tensor, earlier: _Earlier | None = None) -> Tensor:
        """The same, now that the prediction at the end is known too."""
        if earlier is None:
            change = 0.5 * (clean_at_end - clean)
        else:
            first, second = self._corrector_weights(self._distance(earlier))
            change = first * self._slope(clean, earlier) + second * (clean_at_end - clean)
        return self._first_order(x, clean) - self._weight * change

    @property
    def _weight(self) -> float:
        return (1 - self.end) * expm1(-self.h)

    def _first_order(self, x: Tensor, clean: Tensor) -> Tensor:
        return self.end / self.start * x - self._weight * clean

    def _distance(self, earlier: _Earlier) -> float:
        """Position of the earlier prediction relative to the start, in units of h; negative."""
        return (_log_ratio(earlier.sigma) - _log_ratio(self.start)) / self.h

    def _slope(self, clean: Tensor, earlier: _Earlier) -> Tensor:
        return (earlier.clean - clean) / self._distance(earlier)

    def _corrector_weights(self, distance: float) -> tuple[float, float]:
        """Solution (a, b) of a + b = b_1, distance a + b = b_2; eq. 5 of the paper with two known differences."""
        phi_1 = expm1(-self.h)
        phi_2 = phi_1 / -self.h - 1
        phi_3 = phi_2 / -self.h - 1 / 2
        b_1, b_2 = phi_2 / phi_1, 2 * phi_3 / phi_1
        first = (b_1 - b_2) / (1 - distance)
        return first, b_1 - first


def _log_ratio(sigma: float) -> float:
    """lambda, the logarithm of signal over noise."""
    return log((1 - sigma) / sigma) if sigma > 0 else inf

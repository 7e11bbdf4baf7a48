"""LongLive's sampler, against diffusers' UniPC with the table of Wan's own scheduler."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from pagedvid.models.wan.causal.wan_unipc import WanUniPC
from tests.models.wan.causal.longlive import wan_scheduler


def test_levels_sigmas_and_timesteps_of_longlive():
    """Four steps, shift 5, as `set_timesteps` of wan/utils/fm_solvers_unipc.py computes them: even levels from the
    first of the 1000 training levels, 0.999, shifted; timesteps are cut off."""
    sampler = WanUniPC(shift=5.0, num_steps=4)
    assert sampler.noise_levels == (1.0, 0.75, 0.5, 0.25, 0.0)
    even = np.linspace(0.999, 0.0, 5)
    expected = (5 * even / (1 + 4 * even)).astype(np.float32)
    np.testing.assert_allclose([sampler.sigma(level) for level in sampler.noise_levels], expected, rtol=2e-7)
    assert [sampler.timestep(level) for level in sampler.noise_levels] == [999, 937, 833, 624, 0]


@pytest.mark.parametrize("num_steps", [1, 2, 4])
def test_steps_are_those_of_the_scheduler(num_steps):
    """For a velocity that bends with the sample and with time, so that every order shows."""
    torch.manual_seed(num_steps)
    sampler, mix = WanUniPC(shift=5.0, num_steps=num_steps), torch.randn(16, 16) / 4
    scheduler = wan_scheduler(num_steps, shift=5.0)

    def velocity(x, timestep):
        return torch.tanh(x @ mix) * (1 + timestep / 500) + x * timestep / 1000

    expected = torch.randn(45, 16)
    latents = sampler.begin(expected)
    for (level, next_level), timestep in zip(pairwise(sampler.noise_levels), scheduler.timesteps.tolist(), strict=True):
        latents = sampler.advance(latents, velocity(latents[:, :16], timestep), level, next_level)
        expected = scheduler.step(velocity(expected, timestep), timestep, expected, return_dict=False)[0]
        torch.testing.assert_close(latents[:, :16], expected, rtol=1e-5, atol=1e-5)
    assert expected.std() > 0.1

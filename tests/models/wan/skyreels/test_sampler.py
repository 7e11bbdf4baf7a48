"""Levels, timesteps, guidance and steps, against diffusers' own scheduler."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from pagedvid.cache.window import Window
from pagedvid.errors import ConfigError
from pagedvid.models.wan.base.pipeline import Condition
from pagedvid.models.wan.base.unipc import FlowUniPC
from pagedvid.models.wan.skyreels.spec import SkyReelsSettings
from tests.models.wan.skyreels.test_rollout import pipeline_scheduler, tiny_model

SAMPLER = FlowUniPC(shift=8.0)


@pytest.mark.parametrize("num_steps", [1, 5, 30, 50])
def test_sigmas_and_timesteps_are_those_of_the_pipelines_scheduler(num_steps):
    scheduler, levels = pipeline_scheduler(), SkyReelsSettings().noise_levels(num_steps)
    scheduler.set_timesteps(num_steps)
    sigmas = torch.tensor([SAMPLER.sigma(level) for level in levels])
    torch.testing.assert_close(sigmas, scheduler.sigmas, rtol=2e-7, atol=0)
    assert [SAMPLER.timestep(level) for level in levels[:-1]] == scheduler.timesteps.tolist()
    assert SAMPLER.timestep(levels[-1]) == 0


@pytest.mark.parametrize("num_steps", [1, 2, 3, 7, 30])
def test_steps_are_those_of_the_pipelines_scheduler(num_steps):
    """For a velocity that bends with the sample and with time, so that every order shows."""
    torch.manual_seed(num_steps)
    mix, scheduler = torch.randn(16, 16) / 4, pipeline_scheduler()
    scheduler.set_timesteps(num_steps)

    def velocity(x, timestep):
        return torch.tanh(x @ mix) * (1 + timestep / 500) + x * timestep / 1000

    expected = torch.randn(45, 16)
    latents = SAMPLER.begin(expected)
    for (level, next_level), timestep in zip(
        pairwise(SkyReelsSettings().noise_levels(num_steps)), scheduler.timesteps.tolist(), strict=True
    ):
        latents = SAMPLER.advance(latents, velocity(latents[:, :16], timestep), level, next_level)
        expected = scheduler.step(velocity(expected, timestep), timestep, expected, return_dict=False)[0]
        torch.testing.assert_close(latents[:, :16], expected, rtol=1e-5, atol=1e-5)
    assert latents.shape == (45, 64) and expected.std() > 0.1


def test_first_and_second_order_differ():
    """What the chunk remembers matters from the second step on."""
    torch.manual_seed(0)
    x, *velocities = torch.randn(4, 45, 16)
    levels = SkyReelsSettings().noise_levels(5)
    latents = SAMPLER.advance(SAMPLER.begin(x), velocities[0], *levels[:2])
    forgetful = torch.cat([latents[:, :16], torch.zeros(45, 48)], dim=1)
    after, after_forgetting = (SAMPLER.advance(each, velocities[1], *levels[1:3]) for each in (latents, forgetful))
    assert float((after[:, :16] - after_forgetting[:, :16]).abs().mean()) > 0.01


def test_guidance_lies_beyond_the_conditional_prediction():
    model = tiny_model(guidance_scale=6.0)
    cond, uncond = torch.randn(45, 16), torch.randn(45, 16)
    latents = model.initial_latents(Condition({}), 0, 0)
    given = model.advance(latents, {"cond": cond, "uncond": uncond}, 1.0, 0.5)
    expected = model.advance(latents, {"cond": uncond + 6 * (cond - uncond)}, 1.0, 0.5)
    torch.testing.assert_close(given, expected)


def test_branches_have_histories_of_their_own_and_one_goes_without_guidance():
    model = tiny_model()
    first, *_ = model.schedule(Condition({}), 9, 2, Window(1, 4)).rounds()
    assert [(part.role, part.branch) for part in first.ranges] == [("cond", "cond"), ("uncond", "uncond")]
    alone = tiny_model(guidance_scale=1.0)
    assert alone.geometry.branches == ("cond",) and set(alone.prompts("x")) == {"cond"}


def test_the_number_of_steps_may_be_chosen():
    model = tiny_model()
    assert model.settings.num_denoise_steps == 3
    assert len(list(model.schedule(Condition({}), 3, 7, Window(1, 4)).rounds())) == 7
    with pytest.raises(ConfigError, match="num_denoise_steps is 0"):
        model.schedule(Condition({}), 3, 0, Window(1, 4))

"""The few-step sampler: levels, re-noising, and noise that belongs to (seed, chunk, step)."""

from __future__ import annotations

import pytest
import torch

from pagedvid.cache.window import Window
from pagedvid.errors import ConfigError
from pagedvid.models.wan.base.pipeline import Condition
from pagedvid.models.wan.causal.renoising import Renoising
from tests.models.wan.causal.test_rollout import tiny_model

BARE = Condition({})
"""Nothing but noise."""


def test_the_levels_of_self_forcing():
    """Its four timesteps, warped by shift 5: 1000, 937.5, 833.33, 625."""
    levels = Renoising().noise_levels
    assert levels == pytest.approx((1.0, 0.9375, 5 / 6, 0.625, 0.0), abs=1e-12)
    even = Renoising((1000.0, 757.0, 522.0), shift=1.0).noise_levels
    assert even == pytest.approx((1.0, 0.757, 0.522, 0.0), abs=1e-12)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"timesteps": (750.0, 500.0)}, ["(750.0, 500.0)", "from 1000"]),
        ({"timesteps": (1000.0, 500.0, 500.0)}, ["fall"]),
        ({"timesteps": ()}, ["timesteps"]),
        ({"shift": 0.0}, ["shift is 0.0"]),
    ],
)
def test_steps_that_do_not_fall_from_noise_are_refused(changed, words):
    with pytest.raises(ConfigError) as caught:
        Renoising(**changed)
    for word in words:
        assert word in str(caught.value)


def test_a_step_predicts_the_clean_chunk_and_adds_the_noise_of_the_next_step():
    model = tiny_model()
    levels, channels = model.sampler.noise_levels, model.grid.token_channels
    latents = model.initial_latents(BARE, 3, 2)
    assert latents.shape == (45, 4 * channels)
    draws = latents.split(channels, dim=1)
    velocity = torch.randn(45, channels)
    after = model.advance(latents, {"cond": velocity}, levels[1], levels[2])
    clean = draws[0] - levels[1] * velocity
    torch.testing.assert_close(after[:, :channels], (1 - levels[2]) * clean + levels[2] * draws[2])
    assert torch.equal(after[:, channels:], latents[:, channels:])
    last = model.advance(latents, {"cond": velocity}, levels[3], levels[4])
    torch.testing.assert_close(last[:, :channels], draws[0] - levels[3] * velocity)
    assert torch.equal(latents, model.initial_latents(BARE, 3, 2))  # the input is left as it is


def test_noise_is_its_own_for_every_seed_chunk_and_step():
    model = tiny_model()
    draws = torch.cat(
        [torch.stack(model.initial_latents(BARE, seed, chunk).split(16, dim=1)) for seed in (0, 1) for chunk in (0, 1)]
    ).flatten(1)
    correlation = torch.corrcoef(draws) - torch.eye(len(draws))
    assert len(draws) == 16 and float(correlation.abs().max()) < 0.2  # 720 numbers each; equal ones would give 1
    assert float(draws.std()) == pytest.approx(1, abs=0.02)


def test_another_number_of_steps_is_refused():
    model = tiny_model()
    with pytest.raises(ConfigError, match="num_denoise_steps is 8; tiny was distilled to 4 steps"):
        model.schedule(BARE, 9, 8, Window(1, 4))


def test_steps_and_clean_pass_of_a_chunk():
    """Four denoise steps, then a pass at level 0 that stores; nothing is stored for the last chunk."""
    model = tiny_model(sink_frames=3, window_frames=9)
    schedule = model.schedule(BARE, 7, 4, Window(9, 9))
    rounds = list(schedule.rounds())
    levels = [round_.ranges[0].noise_level for round_ in rounds]
    distilled = model.sampler.noise_levels
    assert levels == [*distilled, *distilled, *distilled[:-1]]
    assert [round_.ranges[0].commits for round_ in rounds] == [*[False] * 4, True] * 2 + [False] * 4
    assert schedule.window == Window(1, 1) and schedule.num_commits == 2

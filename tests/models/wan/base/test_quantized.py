"""Two-bit history in diffusers' transformers: less error with the correction than without, and no more stolen mass.

Weights are random. What is shown is that steps, correction and factors reach these models' attention, not how good
their videos are.
"""

from __future__ import annotations

import pytest
import torch

from tests.models.wan.base.forwards import cached_mass, denoise_after_commits, relative_error
from tests.models.wan.base.tiny import FRAMES_PER_CHUNK, embeddings, engine_of, generate
from tests.models.wan.causal.test_rollout import tiny_model as tiny_wan
from tests.models.wan.skyreels.test_rollout import tiny_model as tiny_skyreels

MODELS = {"wan-causal": tiny_wan, "skyreels": lambda: tiny_skyreels(guidance_scale=1.0)}


@pytest.fixture(scope="module", params=list(MODELS))
def model(request):
    return MODELS[request.param]()


def test_the_correction_lowers_the_error_of_attention_and_output(model):
    """Relative error of the attention outputs: off 0.297 and 0.317, formula 0.280 and 0.295, measured 0.282 and 0.295;
    of the velocity 0.029, 0.028 and 0.028."""
    exact = denoise_after_commits(model, "fp32")
    off, formula, measured = (denoise_after_commits(model, "int2", how) for how in ("off", "formula", "measured"))
    for layer, truth in enumerate(exact.attended):
        uncorrected = relative_error(off.attended[layer], truth)
        assert 0.05 < uncorrected < 0.5
        for corrected in (formula, measured):
            assert relative_error(corrected.attended[layer], truth) < 0.97 * uncorrected
    for corrected in (formula, measured):
        assert relative_error(corrected.velocity, exact.velocity) < 0.98 * relative_error(off.velocity, exact.velocity)


def test_bf16_is_close_and_four_bits_lie_between(model):
    exact = denoise_after_commits(model, "fp32").velocity
    bf16, int4, int2 = (
        relative_error(denoise_after_commits(model, codec, "measured").velocity, exact)
        for codec in ("bf16", "int4", "int2")
    )
    assert 0 < bf16 < 0.001
    assert 2 * bf16 < int4 < int2 / 3


def test_stored_keys_gain_mass_and_the_correction_takes_it_back(model):
    """Mass shift by layer: off +0.045 and +0.043, measured +0.009 and -0.006 (factors are fitted to the queries of the
    clean pass, not to those of this noisier step)."""
    passes = denoise_after_commits(model, "fp32").passes
    exact = cached_mass(model, "fp32", "off", passes)
    off, measured = (cached_mass(model, "int2", how, passes) - exact for how in ("off", "measured"))
    assert bool((off > 0.01).all()), off
    assert bool((measured.abs() < 0.4 * off).all()), (measured, off)


def test_an_int2_video_through_the_engine_differs_from_its_fp32_twin_but_not_much(model):
    frames = [3 * FRAMES_PER_CHUNK]
    exact, int2 = (generate(engine_of(model, codec), {"a": embeddings(1)}, frames)["a"] for codec in ("fp32", "int2"))
    torch.testing.assert_close(int2[:FRAMES_PER_CHUNK], exact[:FRAMES_PER_CHUNK], rtol=0, atol=0)  # nothing stored yet
    assert 1e-3 < relative_error(int2[FRAMES_PER_CHUNK:], exact[FRAMES_PER_CHUNK:]) < 0.2

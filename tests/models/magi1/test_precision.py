"""What pages of fewer bits do to the recorded rollouts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pagedvid.codecs.raw.codec import RawCodec
from pagedvid.engine.engine import Engine
from tests.models.magi1.recordings import ROLLOUTS, engine_of, final_of, largest_difference, play, recorded_model
from tests.models.magi1.shadow import VARIANTS, ShadowedCache

ROUNDING = {"w1": 0.003, "w4": 0.0015, "w4_prefix": 0.0038}
"""Measured with a dense implementation that rounds its cached keys, after rotary embedding, and values to bf16."""


@pytest.mark.parametrize(("name", "measured"), ROUNDING.items(), ids=str)
def test_bf16_pages_deviate_as_far_as_rounding_explains(name: str, measured: float, monkeypatch):
    rollout = ROLLOUTS[name]
    in_bf16 = final_of(rollout, "bf16")
    assert measured / 2 < largest_difference(in_bf16, rollout.data["final"]) < 2 * measured
    encode = RawCodec.encode
    with monkeypatch.context() as patched:
        patched.setattr(RawCodec, "encode", lambda self, x: encode(self, x.bfloat16().float()))
        rounded = final_of(rollout, "fp32")
    assert largest_difference(in_bf16, rounded) <= 2e-4


@pytest.mark.parametrize("codec", ["int8", "int4", "int2"])
def test_fewer_bits_move_the_latents_less_than_a_wrong_history(codec: str):
    """Without any history they move by 1.7 (see test_mistakes.py)."""
    rollout = ROLLOUTS["w1"]
    limits = {"int8": (1e-3, 0.05), "int4": (0.01, 0.35), "int2": (0.05, 0.9)}
    low, high = limits[codec]
    assert low < largest_difference(final_of(rollout, codec), rollout.data["final"]) < high


def test_two_bits_gain_mass_that_the_correction_takes_back():
    """On the rollout whose chunks read most: random weights, so the figures are about the mechanism only."""
    rollout = ROLLOUTS["w1"]
    usual = engine_of(recorded_model(rollout), rollout.num_steps)
    cache = ShadowedCache(replace(usual.cache.spec, debug_checks=False), "4MiB")
    engine = Engine(usual.model, cache, usual.window, max_batch_tokens=10_000, num_denoise_steps=rollout.num_steps)
    engine.submit(rollout.request())
    assert largest_difference(play(engine).final["a"], rollout.data["final"]) <= 1e-4
    exact, off, formula, measured = (cache.errors[variant] for variant in VARIANTS)
    assert exact.mean_relative < 1e-5
    for variant in VARIANTS:
        errors = cache.errors[variant]
        print(variant, f"{errors.mean_relative:.4f}", f"{errors.mean_mass_shift(exact):+.5f}")
    shifts = [errors.mean_mass_shift(exact) for errors in (off, formula, measured)]
    assert shifts[0] > 0.005
    assert max(map(abs, shifts[1:])) < shifts[0] / 2
    assert measured.mean_relative < off.mean_relative


def test_the_network_runs_in_bf16():
    """Weights and hidden states rounded; the parts that stay in float32 keep it near the recording."""
    rollout = ROLLOUTS["w1"]
    model = recorded_model(rollout, dtype="bfloat16")
    difference = largest_difference(final_of(rollout, "bf16", model=model), rollout.data["final"])
    assert 1e-3 < difference < 0.3

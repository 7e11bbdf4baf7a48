"""Models by name, without their weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pagedvid.errors import ConfigError
from pagedvid.geometry import Window
from pagedvid.models.magi1.config import PUBLISHED
from pagedvid.models.registry import load_model, model_geometry, model_schedule, writes_latents


def test_unknown_names_are_answered_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"unknown model 'magi-2'; known are demo, magi-1-4\.5b, .*magi-1-24b"):
        model_geometry("magi-2")


def test_every_published_variant_has_a_name():
    for name, config in PUBLISHED.items():
        geometry = model_geometry(name)
        assert (geometry.num_layers, geometry.head_dim) == (config.network.num_layers, 128)


def test_who_writes_latents():
    assert not writes_latents("demo", None)
    assert writes_latents("magi-1-4.5b", None)


def test_the_demo_takes_no_other_parts():
    for part in ("text_encoder", "vae"):
        with pytest.raises(ConfigError, match="needs neither a text encoder nor a VAE"):
            load_model("demo", None, "cpu", torch.float32, **{part: Path("x")})


@pytest.mark.parametrize("name", ["demo", "magi-1-4.5b"])
def test_the_order_of_work_is_known_without_weights(name: str):
    geometry = model_geometry(name)
    schedule = model_schedule(name, None, 3 * geometry.frames_per_chunk, 4, Window(0, 1))
    finished = [chunk for round_ in schedule.rounds() for chunk in round_.finished]
    assert finished == [0, 1, 2] and schedule.num_commits == 2
    assert (schedule.commits is None) == (name == "demo")

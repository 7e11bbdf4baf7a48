"""Models by name, without their weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pagedvid.capacity.catalog import all_cards
from pagedvid.errors import ConfigError
from pagedvid.geometry import Window
from pagedvid.models.choice import ModelChoice
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
    assert not writes_latents("demo")
    for name in ("magi-1-4.5b", "hy-worldplay-8b", "self-forcing", "skyreels-v2-1.3b"):
        assert writes_latents(name)
    for name in ("self-forcing", "skyreels-v2-1.3b"):
        assert not writes_latents(name, ModelChoice(vae=Path("x")))


def test_the_demo_takes_no_other_parts():
    for part in ("text_encoder", "vae"):
        with pytest.raises(ConfigError, match="needs neither a text encoder nor a VAE"):
            load_model("demo", ModelChoice(**{part: Path("x")}), "cpu", torch.float32)


@pytest.mark.parametrize("name", ["self-forcing", "krea-14b", "skyreels-v2-1.3b", "skyreels-v2-14b"])
def test_models_that_run_are_what_their_cards_say(name: str):
    """`pagedvid capacity` counts with the cards of configs/models."""
    card, _ = all_cards(None)[name]
    height, width = (int(side) for side in str(card.resolution).split("x")[::-1])
    choice = ModelChoice(height=height, width=width)
    geometry = model_geometry(name, choice)
    assert (geometry.num_layers, geometry.num_query_heads, geometry.num_kv_heads, geometry.head_dim) == (
        card.num_layers, card.num_query_heads, card.num_kv_heads, card.head_dim,
    )  # fmt: skip
    assert geometry.tokens_per_frame == card.tokens_per_frame(card.resolution)
    assert (geometry.frames_per_chunk, geometry.branches) == (card.frames_per_chunk, tuple(card.branches))
    schedule = model_schedule(name, choice, 100, None, Window(9, 9))
    assert schedule.window.max_chunks == card.window.sink_chunks + card.window.recent_chunks


@pytest.mark.parametrize("name", ["demo", "magi-1-4.5b"])
def test_the_order_of_work_is_known_without_weights(name: str):
    geometry = model_geometry(name)
    schedule = model_schedule(name, None, 3 * geometry.frames_per_chunk, 4, Window(0, 1))
    finished = [chunk for round_ in schedule.rounds() for chunk in round_.finished]
    assert finished == [0, 1, 2] and schedule.num_commits == 2
    assert (schedule.commits is None) == (name == "demo")

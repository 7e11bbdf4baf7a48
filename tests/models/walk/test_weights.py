"""The walk model's folder: what was saved is loaded, and files that do not belong to it are refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from pagedvid.cache.window import Window
from pagedvid.config.sections import CacheConfig, Config, ModelConfig
from pagedvid.errors import ConfigError
from pagedvid.models.build import resolve
from pagedvid.models.demo.spec import TransformerConfig
from pagedvid.models.registry import model_spec
from pagedvid.models.walk.actions import MOVES
from pagedvid.models.walk.network import Transformer
from pagedvid.models.walk.weights import SHIPPED_WEIGHTS, load_walk, save_weights
from walk_check import outing_scores


def network() -> Transformer:
    torch.manual_seed(0)
    return Transformer(TransformerConfig(width=128, num_heads=2, num_layers=2))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_weights(network(), tmp_path, {"steps": 0})
    return tmp_path


def test_saved_weights_load_again_by_the_models_name(folder: Path):
    spec = model_spec(ModelConfig(name="walk", weights=str(folder)))
    assert spec.geometry.num_layers == 2 and not spec.writes_latents
    assert set(spec.actions) == MOVES.keys()
    assert spec.schedule(7, None, Window(0, 4)).num_commits == 3
    loaded = spec.load([]).network.state_dict()
    for name, tensor in network().state_dict().items():
        assert torch.allclose(loaded[name], tensor, rtol=1e-3, atol=1e-4), name


def test_it_remembers_far_more_than_other_models_unless_settings_say_otherwise(folder: Path):
    model = ModelConfig(name="walk", weights=str(folder))
    assert resolve(Config(model=model)).window == Window(0, 100)
    shorter = resolve(Config(model=model, cache=CacheConfig(recent_chunks=7)))
    assert shorter.window == Window(0, 7)
    assert (shorter.config.cache.sink_chunks, shorter.config.cache.recent_chunks) == (0, 7)


def test_weights_of_another_world_are_refused(folder: Path):
    path = folder / "config.json"
    path.write_text(path.read_text().replace('"world": 2', '"world": 1'))
    with pytest.raises(ConfigError, match="trained on world 1, this is 2"):
        load_walk(folder)


def test_the_shipped_weights_remember_what_left_the_view():
    """A square of 8 steps a side: nothing of the first view is in the one after 16 frames."""
    scores = outing_scores(load_walk(), num_frames=33, maps=range(3))
    assert scores["landmarks"] >= 15 and scores["revisited"] >= 0.9 and scores["revisited_psnr"] > 25
    assert scores["invented_per_frame"] > 2


def test_the_shipped_files_are_small():
    assert sum(file.stat().st_size for file in SHIPPED_WEIGHTS.iterdir()) <= 16 * 2**20


@pytest.mark.parametrize("odd", [{"width": "9" * 5000}, {"x" * 5000: 1}, {"x" * 5000: "\x1b"}])
def test_a_config_with_long_values_is_named_in_a_short_message(folder: Path, odd: dict[str, object]):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "architecture": {**config["architecture"], **odd}}))
    with pytest.raises(ConfigError, match=r"config\.json") as refused:
        load_walk(folder)
    assert len(str(refused.value)) < 600 and str(refused.value).isprintable()

"""Published checkpoints: sizes from shapes, names, and what is refused."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from pagedvid.config.sections import ModelConfig
from pagedvid.errors import ConfigError
from pagedvid.models.worldplay.layers import Sinusoid
from pagedvid.models.worldplay.weights import load_8b, load_wan5b, read_config_8b, read_config_wan5b
from tests.models.specs import load_model, spec_of
from tests.models.worldplay.recordings import CONFIG_8B, CONFIG_WAN, FOLDER, VARIANTS, upstream_config
from tests.models.worldplay.rollout import GRIDS

LOADERS = {"hy8b": load_8b, "wan5b": load_wan5b}
NAMES = {"hy8b": "hy-worldplay-8b", "wan5b": "hy-worldplay-5b"}


def checkpoint(tmp_path, variant, **facts):
    """A folder as published: the weights and the constructor's arguments, and the small resolution."""
    shutil.copyfile(FOLDER / f"{variant}_weights.safetensors", tmp_path / "model.safetensors")
    size = [GRIDS[variant].rows, GRIDS[variant].columns]
    (tmp_path / "config.json").write_text(json.dumps({**upstream_config(variant), "latent_size": size, **facts}))
    return tmp_path


def test_sizes_come_from_the_checkpoint(tmp_path):
    for variant in VARIANTS:
        (tmp_path / variant).mkdir()
    assert read_config_8b(checkpoint(tmp_path / "hy8b", "hy8b")) == CONFIG_8B
    assert read_config_wan5b(checkpoint(tmp_path / "wan5b", "wan5b")) == CONFIG_WAN


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_loaded_model_has_the_published_weights(variant, tmp_path):
    model = LOADERS[variant](checkpoint(tmp_path, variant), ModelConfig())
    stored = load_file(FOLDER / f"{variant}_weights.safetensors")
    loaded = model.network.state_dict()
    assert loaded.keys() == stored.keys() and all(torch.equal(loaded[name], stored[name]) for name in stored)
    assert model.geometry.tokens_per_frame == 6


@pytest.mark.parametrize("variant", VARIANTS)
def test_weights_can_be_loaded_as_bfloat16(variant, tmp_path):
    model = LOADERS[variant](checkpoint(tmp_path, variant), ModelConfig(dtype="bfloat16"))
    assert {parameter.dtype for parameter in model.network.parameters()} == {torch.bfloat16}
    sinusoids = [module.frequencies for module in model.network.modules() if isinstance(module, Sinusoid)]
    assert sinusoids and all(torch.equal(frequencies, Sinusoid().frequencies) for frequencies in sinusoids)


@pytest.mark.parametrize("variant", VARIANTS)
def test_missing_and_surplus_keys_are_named(variant, tmp_path):
    folder = checkpoint(tmp_path, variant)
    tensors = load_file(folder / "model.safetensors")
    gone = "double_blocks.1.img_attn_prope_proj.bias" if variant == "hy8b" else "blocks.1.attn1.to_out_prope.0.bias"
    del tensors[gone]
    tensors["extra.weight"] = torch.zeros(1)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ConfigError, match=f"missing keys {gone}; surplus keys extra.weight"):
        LOADERS[variant](folder, ModelConfig())


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_other_variant_s_checkpoint_is_refused(variant, tmp_path):
    other = next(name for name in VARIANTS if name != variant)
    with pytest.raises(ConfigError, match="is not a checkpoint of HY-WorldPlay"):
        LOADERS[variant](checkpoint(tmp_path, other), ModelConfig())


def test_resolutions_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="5 x 6 positions; this model takes multiples of 2"):
        load_wan5b(checkpoint(tmp_path, "wan5b", latent_size=[5, 6]), ModelConfig())
    with pytest.raises(ConfigError, match="latent_size is 'large'"):
        load_wan5b(checkpoint(tmp_path, "wan5b", latent_size="large"), ModelConfig())


def test_rotary_channels_must_fill_the_head(tmp_path):
    with pytest.raises(ConfigError, match=r"rope_dim_list \[8, 8, 8\] does not add up to the head size 64"):
        read_config_8b(checkpoint(tmp_path, "hy8b", rope_dim_list=[8, 8, 8]))


def test_a_wrong_head_size_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="128 channels wide, which is no multiple of the head size 96"):
        read_config_wan5b(checkpoint(tmp_path, "wan5b", attention_head_dim=96))


def test_there_are_no_weights_of_its_own():
    for name in NAMES.values():
        with pytest.raises(ConfigError, match="ships without weights: give --weights PATH"):
            load_model(name)


def test_geometry_without_weights_is_the_published_one(tmp_path):
    assert spec_of(NAMES["hy8b"]).geometry.num_layers == 54
    assert spec_of(NAMES["hy8b"], checkpoint(tmp_path, "hy8b")).geometry.num_layers == 3

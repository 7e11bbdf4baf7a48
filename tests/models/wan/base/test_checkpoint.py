"""Sizes of checkpoints in the form of Wan's repository."""

from __future__ import annotations

import json

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file

from pagedvid.errors import ConfigError
from pagedvid.models.wan.base.checkpoint import transformer_config
from pagedvid.models.wan.base.names import library_name
from tests.models.wan.base.published import original_table, write_self_forcing, write_single_file
from tests.models.wan.base.tiny import CONFIG, tiny_transformer

WAN = "WanTransformer3DModel"


@pytest.mark.parametrize("form", ["pt", "safetensors", "folder"])
def test_sizes_come_from_the_tensors(form, tmp_path):
    transformer = tiny_transformer(WAN, num_layers=3, ffn_dim=40)
    path = write_self_forcing(tmp_path, generator=transformer)
    if form != "pt":
        path.unlink()
        path = write_single_file(tmp_path / "krea.safetensors", transformer)
    path = tmp_path if form == "folder" else path
    config = transformer_config(path)
    expected = {**CONFIG, "num_layers": 3, "ffn_dim": 40, "patch_size": (1, 2, 2), "cross_attn_norm": True, "eps": 1e-6}
    del expected["rope_max_seq_len"]
    assert config == expected


def test_heads_have_128_channels_unless_told_otherwise(tmp_path):
    transformer = diffusers.WanTransformer3DModel(**{**CONFIG, "num_attention_heads": 8})
    file = write_single_file(tmp_path / "a.safetensors", transformer)
    (tmp_path / "config.json").unlink()
    config = transformer_config(file)
    assert (config["num_attention_heads"], config["attention_head_dim"]) == (1, 128)


@pytest.mark.parametrize("facts", [{}, {"num_heads": 3}])
def test_channels_that_do_not_divide_into_heads_are_refused(facts, tmp_path):
    file = write_single_file(tmp_path / "a.safetensors", tiny_transformer(WAN))
    (tmp_path / "config.json").write_text(json.dumps(facts))
    with pytest.raises(ConfigError, match=r"has 32 channels, not . equal heads; write num_heads into a config.json"):
        transformer_config(file)


def test_other_checkpoints_are_refused(tmp_path):
    save_file({"model.diffusion_model.x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ConfigError, match="is not a checkpoint of a Wan transformer"):
        transformer_config(tmp_path / "other.safetensors")


def test_a_file_of_several_unknown_tables_names_them(tmp_path):
    torch.save({"critic": {"x": torch.zeros(1)}, "step": 3}, tmp_path / "critic.pt")
    with pytest.raises(ConfigError, match="holds a dict with the keys critic, step that is not a table of tensors"):
        transformer_config(tmp_path / "critic.pt")


def test_the_tables_differ_in_names_only(tmp_path):
    transformer = tiny_transformer(WAN)
    write_single_file(tmp_path / "a.safetensors", transformer)
    stored = load_file(tmp_path / "a.safetensors")
    own = transformer.state_dict()
    assert {library_name(name) for name in stored} == set(own)
    assert all(torch.equal(tensor, own[library_name(name)]) for name, tensor in stored.items())
    assert len(original_table(transformer)) == len(own)

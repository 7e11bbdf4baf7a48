"""SkyReels-V2 from disk: a pipeline in the layout of diffusers, its parts, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pagedvid.cache.window import Window
from pagedvid.errors import ConfigError
from tests.models.specs import load_model, spec_of
from tests.models.wan.base.published import original_table, write_pipeline
from tests.models.wan.base.tiny import tiny_transformer

SKYREELS = "SkyReelsV2Transformer3DModel"
SIZE = {"height": 48, "width": 80}


def load(weights: Path, dtype: torch.dtype = torch.float32, **chosen):
    return load_model("skyreels-v2-1.3b", weights, dtype, **{**SIZE, **chosen})


@pytest.mark.parametrize("knows_fps", [False, True])
@pytest.mark.parametrize("part", ["", "transformer"])
def test_a_folder_gives_the_weights_that_were_written(knows_fps, part, tmp_path):
    transformer = write_pipeline(tmp_path, SKYREELS, inject_sample_info=knows_fps)
    model = load(tmp_path / part)
    loaded, expected = model.transformer.state_dict(), transformer.state_dict()
    assert loaded.keys() == expected.keys() and all(torch.equal(loaded[name], expected[name]) for name in expected)
    assert any("fps" in name for name in loaded) == knows_fps
    assert not any(tensor.is_meta for tensor in (*model.transformer.parameters(), *model.transformer.buffers()))
    assert model.frames_per_second == (6.0 if part else 24.0)
    assert spec_of("skyreels-v2-1.3b", tmp_path / part, **SIZE).writes_latents == bool(part)


def test_shards_with_an_index_are_read(tmp_path):
    transformer = write_pipeline(tmp_path, SKYREELS)
    (tmp_path / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    transformer.save_pretrained(tmp_path / "transformer", max_shard_size="20KB")
    assert len(list((tmp_path / "transformer").glob("*.safetensors"))) > 1
    loaded = load(tmp_path).transformer.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in transformer.state_dict().items())


def test_both_prompts_are_encoded_before_the_transformer_is_loaded(tmp_path, monkeypatch):
    from pagedvid.integrations import text_encoders

    encoded = []

    class Watched(text_encoders.T5TextEncoder):
        def encode(self, prompt, max_tokens):
            encoded.append(prompt)
            return super().encode(prompt, max_tokens)

    monkeypatch.setattr(text_encoders, "T5TextEncoder", Watched)
    write_pipeline(tmp_path, SKYREELS)
    model = load(tmp_path, prompts=("a cat", "a dog"))
    assert encoded == ["a cat", "a dog", model.settings.negative_prompt]
    for prompt in ("a cat", "a dog"):
        assert set(model.prepare(prompt, {}, 5).text) == {"cond", "uncond"}
    assert len(encoded) == 3  # the negative prompt once for all videos


@pytest.mark.parametrize(("name", "layers", "heads"), [("skyreels-v2-1.3b", 30, 12), ("skyreels-v2-14b", 40, 40)])
def test_integers_and_order_of_work_are_known_without_weights(name, layers, heads):
    geometry = spec_of(name).geometry
    assert (geometry.num_layers, geometry.num_kv_heads, geometry.head_dim) == (layers, heads, 128)
    assert (geometry.tokens_per_frame, geometry.frames_per_chunk) == (2040, 5)
    assert geometry.branches == ("cond", "uncond")
    schedule = spec_of(name).schedule(25, 10, Window(9, 9))
    assert schedule.window.max_chunks + 1 == 5
    assert len(list(schedule.rounds())) == 5 * 10 + 4
    assert spec_of(name, height=720, width=1280).geometry.tokens_per_frame == 3600


def test_missing_keys_are_named(tmp_path):
    write_pipeline(tmp_path, SKYREELS)
    file = tmp_path / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    del tensors["blocks.1.attn1.to_q.weight"]
    save_file(tensors, file)
    with pytest.raises(ConfigError, match=r"missing keys blocks\.1\.attn1\.to_q\.weight; surplus keys none"):
        load(tmp_path)


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
@pytest.mark.parametrize("knows_fps", [False, True])
def test_weights_in_wan_s_names_are_read(knows_fps, prefix, tmp_path):
    """As Skywork publishes them besides, with Wan's own config.json, and as ComfyUI has them."""
    transformer = tiny_transformer(SKYREELS, inject_sample_info=knows_fps)
    save_file(original_table(transformer, prefix), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "WanModel", "num_heads": 2}))
    for path in (tmp_path, tmp_path / "model.safetensors"):
        loaded, expected = load(path).transformer.state_dict(), transformer.state_dict()
        assert loaded.keys() == expected.keys() and all(torch.equal(loaded[name], expected[name]) for name in expected)


def test_another_transformer_is_refused(tmp_path):
    write_pipeline(tmp_path / "wan", "WanTransformer3DModel")
    with pytest.raises(ConfigError, match="holds a WanTransformer3DModel; this model runs a SkyReelsV2"):
        load(tmp_path / "wan")
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ConfigError, match="is not a checkpoint of a Wan transformer"):
        load(tmp_path / "other.safetensors")

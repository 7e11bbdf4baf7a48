"""Wan-like transformers whose blocks are in host memory make the same videos to the last bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pagedvid.config.sections import Config, ModelConfig, frame_settings
from pagedvid.errors import ConfigError
from pagedvid.models.build import load_model as load_run
from pagedvid.models.build import resolve
from tests.models.specs import load_model, spec_of
from tests.models.wan.base.loras import peft_file, random_pairs
from tests.models.wan.base.published import write_pipeline, write_transformer
from tests.models.wan.base.tiny import FRAMES_PER_CHUNK, embeddings, engine_of, generate

CLASSES = {"self-forcing": "WanTransformer3DModel", "skyreels-v2-1.3b": "SkyReelsV2Transformer3DModel"}
SIZE = {"height": 48, "width": 80}
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"))]


def load(name: str, weights: Path, **chosen):
    return load_model(name, weights, **{**SIZE, **chosen})


def video(model, num_chunks: int = 2):
    rows = embeddings(1, model.geometry.branches)
    return generate(engine_of(model), {"a": rows}, [num_chunks * model.geometry.frames_per_chunk])["a"]


@pytest.mark.parametrize("weights_dtype", [None, "fp8"])
@pytest.mark.parametrize("name", list(CLASSES))
def test_videos_are_the_same_to_the_last_bit(name, weights_dtype, tmp_path):
    theirs = write_transformer(tmp_path / "model", CLASSES[name], num_layers=3)
    save_file(peft_file(random_pairs(theirs)), tmp_path / "lora.safetensors")
    chosen = {"weights_dtype": weights_dtype, "loras": [str(tmp_path / "lora.safetensors")]}
    weights = tmp_path / "model"
    expected = video(load(name, weights, **chosen))
    assert torch.equal(video(load(name, weights, offload=True, **chosen)), expected)


@pytest.mark.parametrize("device", DEVICES)
def test_a_forward_on_the_device_and_what_stays_in_host_memory(device, tmp_path):
    write_transformer(tmp_path / "transformer", CLASSES["self-forcing"], num_layers=4)
    plain = load("self-forcing", tmp_path / "transformer", device=device).transformer
    away = load("self-forcing", tmp_path / "transformer", device=device, offload=True).transformer
    for name, tensor in (*away.named_parameters(), *away.named_buffers()):
        assert tensor.device.type == ("cpu" if name.startswith("blocks.") else device), name
    draw = torch.Generator().manual_seed(1)
    inputs = [
        torch.randn(1, 4, FRAMES_PER_CHUNK, 6, 10, generator=draw).to(device),
        torch.tensor([700]).to(device),
        torch.randn(1, 5, 12, generator=draw).to(device),
    ]
    for transformer in (plain, away):  # the library's own attention, without an engine
        transformer.set_attn_processor(type(transformer.blocks[0].attn2.processor)())
    with torch.no_grad():
        expected = plain(*inputs)[0]
        for _ in range(3):
            assert torch.equal(away(*inputs)[0], expected)
    assert all(tensor.device.type == "cpu" for tensor in away.blocks.parameters())


def test_text_encoder_and_vae_have_devices_of_their_own(tmp_path, monkeypatch):
    from pagedvid.integrations import text_encoders, vae

    devices = []
    real_encoder, real_vae = text_encoders.T5TextEncoder.__init__, vae.VideoVae.__init__
    monkeypatch.setattr(
        text_encoders.T5TextEncoder,
        "__init__",
        lambda self, folder, kind, width, device: (
            devices.append(device),
            real_encoder(self, folder, kind, width, "cpu"),
        )[1],
    )
    monkeypatch.setattr(
        vae.VideoVae,
        "__init__",
        lambda self, folder, device: (devices.append(device), real_vae(self, folder, "cpu"))[1],
    )
    write_pipeline(tmp_path, CLASSES["self-forcing"])
    load("self-forcing", tmp_path, text_encoder_device="cuda:3", vae_device="cuda:4", prompts=("a cat",))
    assert sorted(devices) == ["cuda:3", "cuda:4"]
    devices.clear()
    load("self-forcing", tmp_path, prompts=("a cat",))
    assert devices == ["cpu", "cpu"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="the device exists here")
@pytest.mark.parametrize("part", ["text_encoder", "vae"])
def test_a_device_that_does_not_exist_is_refused_before_anything_is_read(part, tmp_path):
    write_pipeline(tmp_path, CLASSES["self-forcing"])
    model = ModelConfig(name="self-forcing", weights=str(tmp_path), **{f"{part}_device": "cuda"}, **SIZE)
    with pytest.raises(ConfigError, match="device is 'cuda', but PyTorch sees 0 CUDA devices here; use cpu"):
        load_run(resolve(Config(model=model)), ("a cat",))


def test_where_weights_are_decides_no_frame():
    default = frame_settings(Config())
    assert frame_settings(Config(model=ModelConfig(offload=True))) == default
    assert frame_settings(Config(model=ModelConfig(vae_device="cpu", text_encoder_device="cpu"))) == default
    assert frame_settings(Config(model=ModelConfig(weights_dtype="fp8"))) != default


@pytest.mark.parametrize("name", ["demo", "walk"])
def test_models_that_ship_with_pagedvid_stay_on_the_device(name):
    with pytest.raises(ConfigError, match=rf"{name} is small and takes its weights as they are; remove model.offload"):
        spec_of(name, offload=True)

"""Wan 2.2 5B's transformer and VAE from disk as longlive-2-5b: the published forms, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pagedvid.cache.window import Window
from pagedvid.errors import ConfigError
from pagedvid.models.common.fp8_linear import Fp8Linear
from tests.integrations.tiny_parts import WAN22_5B
from tests.models.common.gguf_files import write_gguf
from tests.models.specs import load_model, spec_of
from tests.models.wan.base.loras import RANK, linears, merged, original_module, peft_file, random_pairs
from tests.models.wan.base.published import original_table, write_heads, write_pipeline, write_transformer, write_vae
from tests.models.wan.base.tiny import embeddings, engine_of, generate, tiny_transformer

NAME, WAN = "longlive-2-5b", "WanTransformer3DModel"
CHANNELS = {"in_channels": 48, "out_channels": 48}
SIZE = {"height": 64, "width": 96}


def load(weights: Path, **chosen):
    return load_model(NAME, weights, **{**SIZE, **chosen})


def write(form: str, folder: Path, transformer) -> Path:
    """The transformer as LongLive ("pt"), ComfyUI, GGUF's users or diffusers have it."""
    if form == "diffusers":
        transformer.save_pretrained(folder)
        return folder
    write_heads(folder)
    if form == "pt":
        torch.save({"generator": original_table(transformer)}, folder / "model_bf16.pt")
        return folder / "model_bf16.pt"
    if form == "comfyui":
        save_file(original_table(transformer, "model.diffusion_model."), folder / "wan5b.safetensors")
        return folder / "wan5b.safetensors"
    write_gguf(folder / "wan5b.gguf", original_table(transformer, prefix=""), {})
    return folder / "wan5b.gguf"


@pytest.mark.parametrize("form", ["pt", "comfyui", "gguf", "diffusers"])
def test_every_form_gives_the_weights_that_were_written(form, tmp_path):
    theirs = tiny_transformer(WAN, **CHANNELS)
    loaded = load(write(form, tmp_path, theirs)).transformer.state_dict()
    expected = theirs.state_dict()
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)


def test_a_pipeline_makes_frames_with_its_own_vae_and_goes_on_from_some(tmp_path):
    write_pipeline(tmp_path, WAN, **CHANNELS)
    write_vae(tmp_path / "vae", **WAN22_5B)
    spec, model = spec_of(NAME, tmp_path, **SIZE), load(tmp_path)
    assert not spec.writes_latents and model.frames_per_second == 24.0
    assert (spec.frames.height, spec.frames.width, spec.geometry.tokens_per_frame) == (64, 96, 6)
    format = model.prefix_format(engine_of(model).window)
    assert (format.num_frames(1), format.num_frames(2), format.max_chunks) == (29, 61, 3)


def test_the_lora_that_longlive_writes_is_added(tmp_path):
    """All linear layers of the blocks in the names of Wan's repository, in a table of its own; alpha is the rank."""
    theirs, names = write_transformer(tmp_path / "model", WAN, **CHANNELS), original_module(2)
    in_blocks = random_pairs(theirs, [module for module in linears(theirs) if module.startswith("blocks.")])
    renamed = {names[module]: pair for module, pair in in_blocks.items()}
    torch.save({"generator_lora": peft_file(renamed, "base_model.model.")}, tmp_path / "lora.pt")
    loaded = load(tmp_path / "model", loras=[f"{tmp_path / 'lora.pt'}:0.5"]).transformer.state_dict()
    expected = merged(theirs, in_blocks, 0.5)
    assert next(iter(in_blocks.values()))[0].shape[0] == RANK and loaded.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(loaded[name].double(), tensor, rtol=0, atol=1e-6, msg=name)


def video(model) -> torch.Tensor:
    return generate(engine_of(model), {"a": embeddings(1)}, [16])["a"]


def test_weights_in_eight_bits_change_the_video_a_little_and_those_in_host_memory_do_not(tmp_path):
    write_transformer(tmp_path / "model", WAN, **CHANNELS)
    plain, eight_bit = (load(tmp_path / "model", weights_dtype=kind) for kind in (None, "fp8"))
    both = load(tmp_path / "model", weights_dtype="fp8", offload=True)
    assert sum(isinstance(module, Fp8Linear) for module in eight_bit.transformer.modules()) == 20
    exact, rounded = video(plain), video(eight_bit)
    assert 0.001 < float((rounded - exact).norm() / exact.norm()) < 0.5
    assert torch.equal(video(both), rounded)


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (
            {"height": 720},
            "model.height is 720; longlive-2-5b makes frames of multiples of 32 pixels, such as 704 or 736",
        ),
        ({"width": 16}, "model.width is 16; longlive-2-5b makes frames of multiples of 32 pixels, such as 32 or 64"),
    ],
)
def test_sizes_that_are_no_whole_tokens_are_refused_without_weights(chosen, message):
    with pytest.raises(ConfigError, match=message):
        spec_of(NAME, **chosen)


def test_the_vae_of_wan_21_is_refused(tmp_path):
    """It is found in the pipeline of a fine-tuned model whose VAE was forgotten."""
    write_pipeline(tmp_path, WAN, **CHANNELS)
    with pytest.raises(
        ConfigError, match="decodes 4 channels to 8 pixels a side; the transformer makes 48 channels for 16 pixels"
    ):
        load(tmp_path)


def test_another_number_of_steps_is_refused():
    with pytest.raises(ConfigError, match="num_denoise_steps is 2; longlive-2-5b was distilled to 4 steps"):
        spec_of(NAME).schedule(8, 2, Window(1, 2))

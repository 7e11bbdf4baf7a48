"""Causal Wan models from disk: the published forms, which weights are taken, and everything that can be wrong."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pagedvid.cache.window import Window
from pagedvid.cli.main import main
from pagedvid.errors import ConfigError, PromptError
from pagedvid.models.wan.base.pipeline import Condition
from tests.integrations.tiny_parts import wan22_vae, watch_network, write_encoder, write_tokenizer
from tests.models.specs import load_model, spec_of
from tests.models.wan.base.published import (
    write_pipeline,
    write_self_forcing,
    write_single_file,
    write_text_encoder,
    write_vae,
)
from tests.models.wan.base.tiny import TEXT_WIDTH, tiny_transformer

WAN = "WanTransformer3DModel"
SIZE = {"height": 48, "width": 80}


def load(weights: Path, name: str = "self-forcing", dtype: torch.dtype = torch.float32, **chosen):
    return load_model(name, weights, dtype, **{**SIZE, **chosen})


def assert_same_weights(model, transformer) -> None:
    loaded, expected = model.transformer.state_dict(), transformer.state_dict()
    assert loaded.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(loaded[name], tensor), name
    assert not any(tensor.is_meta for tensor in (*model.transformer.parameters(), *model.transformer.buffers()))


# ---------------------------------------------------------------------- the published forms


@pytest.mark.parametrize("form", ["pt", "safetensors", "folder of a file", "transformer", "pipeline"])
def test_every_form_gives_the_weights_that_were_written(form, tmp_path):
    if form in ("transformer", "pipeline"):
        transformer = write_pipeline(tmp_path, WAN)
        path = tmp_path / "transformer" if form == "transformer" else tmp_path
    else:
        transformer = tiny_transformer(WAN)
        if form == "safetensors":
            path = write_single_file(tmp_path / "krea.safetensors", transformer)
        else:
            path = write_self_forcing(tmp_path, generator=transformer)
            path = path.parent if form == "folder of a file" else path
    assert_same_weights(load(path), transformer)


def test_a_loaded_transformer_computes_what_the_library_computes(tmp_path):
    """Rotary tables are in no checkpoint; the transformer that was saved has them."""
    theirs = write_pipeline(tmp_path, WAN)
    model = load(tmp_path)
    for name, buffer in theirs.named_buffers():
        assert torch.equal(model.transformer.get_buffer(name), buffer)
    model.network.paged.remove()
    draw = torch.Generator().manual_seed(1)
    inputs = torch.randn(1, 4, 2, 6, 10, generator=draw), torch.tensor([700]), torch.randn(1, 5, 12, generator=draw)
    assert torch.equal(model.transformer(*inputs)[0], theirs(*inputs)[0])


@pytest.mark.parametrize(
    ("tables", "ema", "taken"),
    [
        (("generator", "generator_ema"), True, "generator_ema"),
        (("generator", "generator_ema"), False, "generator"),
        (("generator",), True, "generator"),
        (("generator_ema",), False, "generator_ema"),
    ],
)
def test_averaged_weights_are_taken_unless_told_otherwise(tables, ema, taken, tmp_path):
    transformers = {name: tiny_transformer(WAN, seed) for seed, name in enumerate(tables)}
    model = load(write_self_forcing(tmp_path, **transformers), ema=ema)
    assert_same_weights(model, transformers[taken])


def test_in_bfloat16_modulation_and_norms_stay_in_float32_as_in_the_library(tmp_path):
    theirs = write_pipeline(tmp_path, WAN)
    model = load(tmp_path, dtype=torch.bfloat16)
    types = {name: parameter.dtype for name, parameter in model.transformer.named_parameters()}
    kept = [name for name, dtype in types.items() if dtype == torch.float32]
    assert {name.replace("blocks.0.", "blocks.1.") for name in kept} == {
        "scale_shift_table",
        "blocks.1.scale_shift_table",
        *(f"blocks.1.norm2.{leaf}" for leaf in ("weight", "bias")),
        *(f"condition_embedder.time_embedder.linear_{i}.{leaf}" for i in (1, 2) for leaf in ("weight", "bias")),
    }
    assert set(types.values()) == {torch.float32, torch.bfloat16}
    model.network.paged.remove()
    draw = torch.Generator().manual_seed(1)
    latents, text = torch.randn(1, 4, 2, 6, 10, generator=draw), torch.randn(1, 5, 12, generator=draw)
    rounded = model.transformer(latents.bfloat16(), torch.tensor([700]), text.bfloat16())[0]
    exact = theirs(latents, torch.tensor([700]), text)[0]
    assert 0 < (rounded.float() - exact).norm() / exact.norm() < 0.03


def test_parts_beside_the_transformer_are_used_and_those_named_come_first(tmp_path):
    write_pipeline(tmp_path / "pipeline", WAN)
    (tmp_path / "other").mkdir()
    write_text_encoder(tmp_path / "other")
    vae = write_vae(tmp_path / "other" / "vae", latents_mean=[5.0] * 4)
    weights = tmp_path / "pipeline"
    own = load(weights)
    assert own.frames_per_second == 16.0  # decoded frames
    named = load(weights, vae=vae, text_encoder=tmp_path / "other")
    latents = torch.zeros(15, 16)
    none = Condition({})
    assert (own.decoder(none)(latents) != named.decoder(none)(latents)).any()
    assert not spec_of("self-forcing", weights, **SIZE).writes_latents
    alone = load(weights / "transformer")
    assert alone.frames_per_second == 4.0  # latent frames
    assert spec_of("self-forcing", weights / "transformer", **SIZE).writes_latents
    with pytest.raises(PromptError, match=r"has nothing to encode the prompt 'a cat' with: set model.text_encoder"):
        alone.prepare("a cat", {}, 3)


def test_known_prompts_are_encoded_before_the_transformer_is_loaded(tmp_path, monkeypatch):
    """The encoder is made once and gone when the transformer is read; the same rows come out for the same prompt."""
    from pagedvid.integrations import text_encoders
    from pagedvid.models.common import network_weights

    order = []

    class Watched(text_encoders.T5TextEncoder):
        def __init__(self, *arguments) -> None:
            super().__init__(*arguments)
            order.append("encoder loaded")

        def encode(self, prompt, max_tokens):
            order.append(prompt)
            return super().encode(prompt, max_tokens)

        def __del__(self) -> None:
            order.append("encoder gone")

    real = network_weights.load_checkpoint

    def watched_load(*arguments, **named):
        order.append("transformer read")
        real(*arguments, **named)

    monkeypatch.setattr(text_encoders, "T5TextEncoder", Watched)
    monkeypatch.setattr(network_weights, "load_checkpoint", watched_load)
    write_pipeline(tmp_path, WAN)
    model = load(tmp_path, prompts=("a cat", "a  cat", "a dog"))
    assert order == ["encoder loaded", "a cat", "a dog", "encoder gone", "transformer read"]
    first, again = model.prepare("a cat", {}, 3), model.prepare("a cat", {}, 3)
    assert torch.equal(first.text["cond"], again.text["cond"]) and len(order) == 5
    model.prepare("a dog walks", {}, 3)
    assert order[5:] == ["encoder loaded", "a dog walks"]


# ---------------------------------------------------------------------- without weights


@pytest.mark.parametrize(
    ("name", "layers", "heads", "tokens", "frames", "steps", "window"),
    [
        ("self-forcing", 30, 12, 1560, 3, 4, (0, 6)),
        ("causvid", 30, 12, 1560, 3, 3, (0, 6)),
        ("krea-14b", 40, 40, 1560, 3, 4, (0, 1)),
        ("longlive-2-5b", 30, 24, 880, 8, 4, (1, 2)),
    ],
)
def test_integers_and_order_of_work_are_known_without_weights(name, layers, heads, tokens, frames, steps, window):
    geometry = spec_of(name).geometry
    assert (geometry.num_layers, geometry.num_kv_heads, geometry.head_dim) == (layers, heads, 128)
    assert (geometry.tokens_per_frame, geometry.frames_per_chunk, geometry.branches) == (tokens, frames, ("cond",))
    schedule = spec_of(name).schedule(7 * frames, None, Window(5, 1))
    assert (schedule.window.sink_chunks, schedule.window.recent_chunks) == window
    assert len(list(schedule.rounds())) == 7 * steps + 6


def test_another_frame_size_changes_the_tokens():
    assert spec_of("krea-14b", height=720, width=1280).geometry.tokens_per_frame == 3600


def test_the_integers_of_weights_are_read_without_loading_them(tmp_path):
    path = write_self_forcing(tmp_path, generator=tiny_transformer(WAN))
    geometry = spec_of("self-forcing", path, **SIZE).geometry
    assert (geometry.num_layers, geometry.num_kv_heads, geometry.head_dim, geometry.tokens_per_frame) == (2, 2, 16, 15)


def test_noise_levels_are_those_that_the_repositories_warp_to():
    from pagedvid.models.wan.causal.spec import PUBLISHED

    levels = {name: settings.sampler.noise_levels for name, (_, settings) in PUBLISHED.items()}
    assert levels["self-forcing"] == pytest.approx((1.0, 0.9375, 0.8333, 0.625, 0.0), abs=1e-4)
    assert levels["causvid"] == pytest.approx((1.0, 0.757, 0.522, 0.0))
    assert levels["krea-14b"] == pytest.approx((1.0, 0.937, 0.833, 0.625, 0.0))


# ---------------------------------------------------------------------- what is refused


def test_missing_and_surplus_keys_are_named_and_counted(tmp_path):
    file = write_single_file(tmp_path / "a.safetensors", tiny_transformer(WAN))
    tensors = load_file(file)
    gone = [name for name in tensors if ".self_attn." in name]
    for name in gone:
        del tensors[name]
    save_file({**tensors, "model.blocks.0.extra.weight": torch.zeros(1)}, file)
    message = (
        r"does not fit the model: missing keys blocks\.0\.attn1\.\S+, .* and 12 more; "
        r"surplus keys model\.blocks\.0\.extra\.weight"
    )
    with pytest.raises(ConfigError, match=message):
        load(file)
    assert len(gone) == 20


def test_wrong_shapes_are_named(tmp_path):
    write_pipeline(tmp_path, WAN)
    config = tmp_path / "transformer" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "ffn_dim": 40}))
    with pytest.raises(ConfigError, match=r"weights of another model: blocks\.0\.ffn\.\S+ \[48\] instead of \[40\]"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"height": 44}, "model.height is 44; self-forcing makes frames of multiples of 16 pixels, such as 32 or 48"),
        ({"width": 88}, "model.width is 88; self-forcing makes frames of multiples of 16 pixels, such as 80 or 96"),
        ({"vae": Path("no/vae")}, r"model.vae is no/vae, which does not exist; .*nothing is downloaded"),
        ({"text_encoder": Path("google/umt5-xxl")}, "model.text_encoder is google/umt5-xxl, which does not exist"),
    ],
)
def test_what_does_not_fit_is_refused_before_weights_are_read(chosen, message, tmp_path, monkeypatch):
    from pagedvid.models.common import network_weights

    path = write_self_forcing(tmp_path, generator=tiny_transformer(WAN))
    monkeypatch.setattr(network_weights, "load_checkpoint", None)
    with pytest.raises(ConfigError, match=message):
        load(path, **chosen)


def test_names_of_a_hub_are_no_paths_and_nothing_is_asked_of_the_network(tmp_path, monkeypatch):
    write_pipeline(tmp_path, WAN)
    asked = watch_network(monkeypatch)
    with pytest.raises(ConfigError, match=r"model.weights is gdhe17/Self-Forcing, which does not exist"):
        load(Path("gdhe17/Self-Forcing"))
    load(tmp_path, prompts=("a cat",))
    assert asked == []


def test_without_weights_the_message_says_how_to_give_them():
    with pytest.raises(ConfigError, match="self-forcing ships without weights: give --weights PATH"):
        load_model("self-forcing")


@pytest.mark.parametrize("part", ["transformer", "vae"])
def test_parts_of_other_models_are_refused(part, tmp_path):
    write_pipeline(tmp_path, "SkyReelsV2Transformer3DModel" if part == "transformer" else WAN)
    if part == "vae":
        write_vae(tmp_path / "vae", z_dim=8, latents_mean=[0.0] * 8, latents_std=[1.0] * 8)
    messages = {
        "transformer": "holds a SkyReelsV2Transformer3DModel; this model runs a WanTransformer3DModel",
        "vae": "decodes 8 channels to 8 pixels a side; the transformer makes 4 channels",
    }
    with pytest.raises(ConfigError, match=messages[part]):
        load(tmp_path)


def test_a_vae_with_larger_patches_is_refused(tmp_path):
    write_pipeline(tmp_path, WAN)
    wan22_vae().save_pretrained(tmp_path / "wan22")
    with pytest.raises(
        ConfigError, match="decodes 4 channels to 16 pixels a side; the transformer makes 4 channels for 8"
    ):
        load(tmp_path, vae=tmp_path / "wan22")


def test_a_text_encoder_of_another_width_is_refused(tmp_path):
    path = write_self_forcing(tmp_path / "weights", generator=tiny_transformer(WAN))
    write_tokenizer(tmp_path / "text")
    write_encoder(tmp_path / "text", "umt5", TEXT_WIDTH + 4)
    with pytest.raises(ConfigError, match=f"rows of a umt5 of width {TEXT_WIDTH}"):
        load(path, text_encoder=tmp_path / "text", prompts=("a cat",))


@pytest.mark.parametrize("library", ["diffusers", "transformers"])
def test_missing_libraries_are_named(library, tmp_path, monkeypatch):
    write_pipeline(tmp_path, WAN)
    monkeypatch.setitem(sys.modules, library, None)
    extra = {"diffusers": "vae", "transformers": "text"}[library]
    with pytest.raises(ConfigError, match=rf"needs the library {library} .*pip install 'pagedvid\[{extra}\]'"):
        load(tmp_path, prompts=("a cat",))


@pytest.mark.parametrize("content", ["[]", "{", '{"_class_name": "WanTransformer3DModel"}'])
def test_broken_configurations_are_refused(content, tmp_path):
    write_pipeline(tmp_path, WAN)
    (tmp_path / "transformer" / "config.json").write_text(content)
    with pytest.raises(ConfigError, match=r"config.json (cannot be read|lacks patch_size|holds a list)"):
        load(tmp_path)


# ---------------------------------------------------------------------- what the command line shows


def test_prompts_that_are_cut_are_shown_once_each_and_make_their_videos(tmp_path, capsys):
    """Two prompts that differ behind their 512 tokens make one and the same video."""
    write_pipeline(tmp_path / "weights", WAN)
    long = "a cat walks on the roof " * 100
    lines = [
        {"prompt": f"{long}cat", "id": "a"},
        {"prompt": f"{long}and the dog sits", "id": "b"},
        {"prompt": f"{long}cat", "id": "c", "seed": 7},
        {"prompt": "a dog", "id": "d"},
    ]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    weights = tmp_path / "weights"
    options = ("--model", "self-forcing", "--memory", "1MiB", "--frames", "3", "--kv", "int2")
    sizes = ("--set", "model.height=48", "--set", "model.width=80", "--weights", str(weights / "transformer"))
    places = (
        "--set",
        f"model.text_encoder={weights}",
        "--prompts",
        str(tmp_path / "p.jsonl"),
        "--out",
        str(tmp_path / "out"),
    )
    assert main(["generate", *options, *sizes, *places]) == 0
    shown = capsys.readouterr().err
    assert shown.count("this model reads 512") == 2 and shown.count("shorten it") == 2
    for end, tokens in (("walks on the roof cat", 602), ("the dog sits", 605)):
        assert f"{end}' has {tokens} tokens; this model reads 512, and the rest has no effect" in " ".join(
            shown.split()
        )

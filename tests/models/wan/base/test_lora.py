"""LoRAs merged at load: equal to weights merged in float64, and to what diffusers makes of the same file.

An error of 1e-6 is float32's rounding of weights of about 1.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pagedvid.errors import ConfigError
from tests.models.specs import load_model, spec_of
from tests.models.wan.base.loras import (
    RANK,
    linears,
    merged,
    musubi_file,
    original_module,
    peft_file,
    random_pairs,
    wan_file,
)
from tests.models.wan.base.published import write_self_forcing, write_transformer
from tests.models.wan.base.tiny import tiny_transformer

CLASSES = {"self-forcing": "WanTransformer3DModel", "skyreels-v2-1.3b": "SkyReelsV2Transformer3DModel"}
SIZE = {"height": 48, "width": 80}
NAMES = original_module(2)


def load(weights: Path, *loras: object, name: str = "self-forcing", dtype=torch.float32):
    return load_model(name, weights, dtype, loras=[str(lora) for lora in loras], **SIZE).transformer


def assert_weights(transformer, expected, tolerance: float = 1e-6) -> None:
    loaded = transformer.state_dict()
    assert loaded.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(loaded[name].double(), tensor, rtol=0, atol=tolerance, msg=name)


@pytest.mark.parametrize("name", list(CLASSES))
@pytest.mark.parametrize(
    "form", ["transformer.", "", "base_model.model.", "adapter name", "wan", "wan alpha", "musubi"]
)
def test_weights_are_those_merged_in_float64(form, name, tmp_path):
    theirs = write_transformer(tmp_path / "model", CLASSES[name])
    in_blocks = [module for module in linears(theirs) if module.startswith("blocks.")]
    pairs = random_pairs(theirs, in_blocks if form == "musubi" else None)
    alpha = 1.5 if "alpha" in form or form == "musubi" else RANK
    if form == "adapter name":
        keys = peft_file(pairs, adapter="style.")
    elif form.startswith("wan"):
        keys = wan_file(pairs, NAMES, alpha if "alpha" in form else None)
    else:
        keys = musubi_file(pairs, NAMES, alpha) if form == "musubi" else peft_file(pairs, form)
    save_file(keys, tmp_path / "lora.safetensors")
    loaded = load(tmp_path / "model", f"{tmp_path / 'lora.safetensors'}:0.7", name=name)
    assert_weights(loaded, merged(theirs, pairs, 0.7 * alpha / RANK))
    changed = [
        module
        for module in pairs
        if not torch.equal(loaded.get_submodule(module).weight, theirs.get_submodule(module).weight)
    ]
    assert changed == list(pairs)


def test_a_pt_file_and_weights_in_wan_s_names(tmp_path):
    theirs = tiny_transformer(CLASSES["self-forcing"])
    weights, pairs = write_self_forcing(tmp_path / "model", generator=theirs), random_pairs(theirs)
    torch.save(peft_file(pairs), tmp_path / "lora.pt")
    assert_weights(load(weights, tmp_path / "lora.pt"), merged(theirs, pairs, 1.0))


def test_several_are_added_each_with_its_scale(tmp_path):
    theirs = write_transformer(tmp_path / "model", CLASSES["self-forcing"])
    first, second = random_pairs(theirs, seed=1), random_pairs(theirs, ["blocks.0.attn1.to_q", "proj_out"], seed=2)
    save_file(peft_file(first), tmp_path / "a.safetensors")
    save_file(wan_file(second, NAMES, None), tmp_path / "b.safetensors")
    loaded = load(tmp_path / "model", f"{tmp_path / 'a.safetensors'}:0.5", f"{tmp_path / 'b.safetensors'}:-2")
    expected = merged(theirs, first, 0.5)
    for name, tensor in merged(theirs, second, -2.0).items():
        expected[name] += tensor - theirs.state_dict()[name].double()
    assert_weights(loaded, expected)


def test_in_bfloat16_the_sum_is_rounded_once(tmp_path):
    theirs = write_transformer(tmp_path / "model", CLASSES["self-forcing"])
    pairs = random_pairs(theirs)
    save_file(peft_file(pairs), tmp_path / "lora.safetensors")
    loaded = load(tmp_path / "model", tmp_path / "lora.safetensors", dtype=torch.bfloat16)
    for module in pairs:
        exact = merged(theirs, pairs, 1.0)[f"{module}.weight"]
        own = loaded.get_submodule(module).weight
        if own.dtype == torch.float32:  # the library keeps it
            continue
        others = own != exact.to(own.dtype)  # where float32's rounding crosses the middle between two numbers
        assert float(others.double().mean()) < 1e-3, module


def test_convolutions_and_differences_of_whole_tensors(tmp_path):
    """What tools that extract a LoRA from two checkpoints write for norms, biases, modulation and the first layer."""
    theirs = write_transformer(tmp_path / "model", CLASSES["self-forcing"])
    pairs = random_pairs(theirs, ["patch_embedding", "blocks.1.ffn.net.2"])
    keys = wan_file(pairs, NAMES, None)
    draw = torch.Generator().manual_seed(3)
    differences = {
        "diffusion_model.blocks.0.self_attn.norm_q.diff": "blocks.0.attn1.norm_q.weight",
        "diffusion_model.blocks.0.norm3.diff_b": "blocks.0.norm2.bias",
        "diffusion_model.blocks.1.cross_attn.o.diff_b": "blocks.1.attn2.to_out.0.bias",
        "diffusion_model.blocks.1.diff_m": "blocks.1.scale_shift_table",
        "diffusion_model.head.diff_m": "scale_shift_table",
        "diffusion_model.head.head.diff": "proj_out.weight",
    }
    expected = merged(theirs, pairs, 0.5)
    for key, name in differences.items():
        keys[key] = torch.randn(expected[name].shape, generator=draw)
        expected[name] += 0.5 * keys[key].double()
    save_file(keys, tmp_path / "lora.safetensors")
    assert_weights(load(tmp_path / "model", f"{tmp_path / 'lora.safetensors'}:0.5"), expected)


@pytest.mark.parametrize(
    ("facts", "factor"),
    [
        ({"lora_alpha": 6, "r": RANK}, 6 / RANK),
        ({"lora_alpha": 6, "r": RANK, "use_rslora": True}, 6 / RANK**0.5),
        ({"r": RANK}, 1.0),
    ],
)
@pytest.mark.parametrize("place", ["beside", "metadata"])
def test_alpha_of_the_settings_that_peft_and_diffusers_write(place, facts, factor, tmp_path):
    theirs = write_transformer(tmp_path / "model", CLASSES["self-forcing"])
    pairs = random_pairs(theirs)
    (tmp_path / "lora").mkdir()
    file = tmp_path / "lora" / "adapter_model.safetensors"
    if place == "beside":
        save_file(peft_file(pairs, "base_model.model."), file)
        (tmp_path / "lora" / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", **facts}))
    else:
        written = {f"transformer.{name}": value for name, value in facts.items()}
        save_file(peft_file(pairs), file, {"format": "pt", "lora_adapter_metadata": json.dumps(written)})
    assert_weights(load(tmp_path / "model", tmp_path / "lora"), merged(theirs, pairs, factor))


# ---------------------------------------------------------------------- the library as oracle


def test_names_and_factors_are_those_of_diffusers_own_converters(tmp_path):
    """Its converters give PEFT's names with alpha inside the matrices."""
    from diffusers.loaders.lora_conversion_utils import (
        _convert_musubi_wan_lora_to_diffusers,
        _convert_non_diffusers_wan_lora_to_diffusers,
    )

    theirs = write_transformer(tmp_path / "model", CLASSES["self-forcing"])
    in_blocks = [module for module in linears(theirs) if module.startswith("blocks.")]
    pairs = random_pairs(theirs, in_blocks)
    forms = {
        "comfy": (wan_file(pairs, NAMES, 0.5), _convert_non_diffusers_wan_lora_to_diffusers),
        "musubi": (musubi_file(pairs, NAMES, 0.5), _convert_musubi_wan_lora_to_diffusers),
    }
    for form, (keys, convert) in forms.items():
        save_file(keys, tmp_path / f"{form}.safetensors")
        save_file(
            {key: x.contiguous() for key, x in convert(dict(keys)).items()}, tmp_path / f"{form}_theirs.safetensors"
        )
        ours = load(tmp_path / "model", tmp_path / f"{form}.safetensors").state_dict()
        expected = load(tmp_path / "model", tmp_path / f"{form}_theirs.safetensors").state_dict()
        for name, tensor in expected.items():
            torch.testing.assert_close(ours[name], tensor, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", list(CLASSES))
def test_diffusers_with_peft_merges_to_the_same_weights(name, tmp_path):
    pytest.importorskip("peft")
    theirs = write_transformer(tmp_path / "model", CLASSES[name])
    pairs = random_pairs(theirs, [module for module in linears(theirs) if "attn" in module])
    save_file(peft_file(pairs), tmp_path / "lora.safetensors")
    ours = load(tmp_path / "model", f"{tmp_path / 'lora.safetensors'}:0.6", name=name)
    theirs.load_lora_adapter(str(tmp_path / "lora.safetensors"), prefix="transformer", adapter_name="a")
    theirs.set_adapters("a", 0.6)
    theirs.fuse_lora()
    theirs.unload_lora()
    assert_weights(ours, {key: tensor.double() for key, tensor in theirs.state_dict().items()})


# ---------------------------------------------------------------------- what is refused


TO_Q = "blocks.0.attn1.to_q"


def one_pair(**changed):
    """A LoRA of one layer; keyword arguments are more keys of that layer, or others in their place."""
    pairs = random_pairs(tiny_transformer(CLASSES["self-forcing"]), [TO_Q])
    return {**peft_file(pairs), **{f"transformer.{TO_Q}.{key.replace('__', '.')}": x for key, x in changed.items()}}


def pair_of(module):
    return {f"{module}.lora_A.weight": torch.ones(3, 32), f"{module}.lora_B.weight": torch.ones(32, 3)}


WRONG = {
    "unknown kind": (
        lambda: one_pair(lora_magnitude_vector=torch.ones(32)),
        rf"keys that are not known of LoRAs: transformer.{TO_Q}.lora_magnitude_vector; known are lora_A",
    ),
    "text encoder": (
        lambda: one_pair() | pair_of("text_encoder.q"),
        r"changes what this model does not have: text_encoder.q.lora_A.weight, text_encoder.q.lora_B.weight; give a",
    ),
    "image layers": (
        lambda: {"diffusion_model.blocks.0.cross_attn.k_img.diff_b": torch.ones(32)},
        r"does not have: diffusion_model.blocks.0.cross_attn.k_img.diff_b",
    ),
    "another layer": (lambda: pair_of("blocks.7.attn1.to_q"), r"does not have: blocks.7.attn1.to_q.lora_A.weight"),
    "wrong shape": (
        lambda: one_pair(lora_A__weight=torch.ones(3, 40)),
        rf"another model: \S+A.weight \[3, 40\] and \S+B.weight \[32, 3\] cannot be added to {TO_Q}.weight \[32, 32\]",
    ),
    "wrong rank": (
        lambda: one_pair(lora_A__weight=torch.ones(4, 32)),
        r"lora_A.weight \[4, 32\] and \S+lora_B.weight \[32, 3\] cannot be added",
    ),
    "wrong bias": (
        lambda: one_pair(lora_B__bias=torch.ones(31)),
        rf"lora_B.bias \[31\] cannot be added to {TO_Q}.bias \[32\]",
    ),
    "half a pair": (
        lambda: {f"{TO_Q}.lora_A.weight": torch.ones(3, 32)},
        rf"{TO_Q}.lora_A.weight is there without the other half of its pair",
    ),
    "alpha alone": (
        lambda: {f"{TO_Q}.alpha": torch.ones(())},
        rf"{TO_Q}.alpha is there without the other half of its pair",
    ),
    "alpha of many": (
        lambda: one_pair(alpha=torch.ones(3)),
        rf"{TO_Q}.alpha \[3\] has no rank, or is not one number",
    ),
    "no rank": (
        lambda: one_pair(lora_A__weight=torch.ones(0, 32), lora_B__weight=torch.ones(32, 0)),
        rf"{TO_Q}.lora_A.weight \[0, 32\] has no rank",
    ),
    "twice": (
        lambda: one_pair() | {f"{TO_Q}.lora_A.weight": torch.ones(3, 32)},
        r"holds \S+ and \S+, which mean the same; remove one",
    ),
    "codes": (
        lambda: one_pair(lora_A__weight=torch.ones(3, 32, dtype=torch.int8)),
        r"lora_A.weight holds int8; allowed are float64",
    ),
    "not a number": (
        lambda: one_pair(lora_A__weight=torch.full((3, 32), float("nan"))),
        r"lora_A.weight holds NaN or infinity",
    ),
}


@pytest.mark.parametrize("what", list(WRONG))
def test_what_does_not_fit_is_named_before_weights_are_read(what, tmp_path, monkeypatch):
    from pagedvid.models.common import network_weights

    write_transformer(tmp_path / "model", CLASSES["self-forcing"])
    make, message = WRONG[what]
    save_file(make(), tmp_path / "lora.safetensors")
    monkeypatch.setattr(network_weights, "load_checkpoint", None)
    with pytest.raises(ConfigError, match=message):
        load(tmp_path / "model", tmp_path / "lora.safetensors")


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"lora_alpha": "8"}, r"its lora_alpha is '8'; it must be a number"),
        ({"lora_alpha": 8, "use_dora": True}, r"was trained with use_dora, which is not supported; merge it"),
        ({"alpha_pattern": {"to_q": 3}}, r"was trained with alpha_pattern, which is not supported"),
        ([1], r"are a list, not a table"),
    ],
)
def test_settings_that_cannot_be_followed_are_refused(facts, message, tmp_path):
    write_transformer(tmp_path / "model", CLASSES["self-forcing"])
    save_file(one_pair(), tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(facts))
    with pytest.raises(ConfigError, match=message):
        load(tmp_path / "model", tmp_path / "adapter_model.safetensors")


def test_a_path_that_does_not_exist_is_refused_before_anything_is_read(tmp_path):
    write_transformer(tmp_path / "model", CLASSES["self-forcing"])
    with pytest.raises(
        ConfigError, match=r"model.loras names no.safetensors, which does not exist; give PATH or PATH:"
    ):
        spec_of("self-forcing", tmp_path / "model", loras=["no.safetensors:0.5"], **SIZE)


@pytest.mark.parametrize("name", ["demo", "magi-1-4.5b", "hy-worldplay-5b"])
def test_models_with_networks_of_their_own_take_none(name):
    with pytest.raises(ConfigError, match=rf"{name} takes no LoRAs; remove model.loras"):
        spec_of(name, loras=["a.safetensors"])


def test_nothing_of_a_lora_is_left_in_the_model(tmp_path):
    theirs = write_transformer(tmp_path / "model", CLASSES["self-forcing"])
    save_file(peft_file(random_pairs(theirs)), tmp_path / "lora.safetensors")
    loaded = load(tmp_path / "model", tmp_path / "lora.safetensors")
    plain = load(tmp_path / "model")
    assert [(n, p.shape, p.dtype) for n, p in loaded.named_parameters()] == [
        (n, p.shape, p.dtype) for n, p in plain.named_parameters()
    ]
    assert "peft" not in sys.modules or loaded.__class__ is plain.__class__

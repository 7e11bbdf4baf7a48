"""Wan-like transformers whose linear layers are in eight bits: what changes, how much, and that the rest does not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pagedvid.errors import ConfigError
from pagedvid.models.common.fp8_linear import Fp8Linear
from tests.models.specs import load_model, spec_of
from tests.models.wan.base.forwards import denoise_after_commits, relative_error
from tests.models.wan.base.loras import merged, peft_file, random_pairs
from tests.models.wan.base.published import original_table, write_heads, write_transformer
from tests.models.wan.base.tiny import embeddings, engine_of, generate, tiny_transformer

CLASSES = {"self-forcing": "WanTransformer3DModel", "skyreels-v2-1.3b": "SkyReelsV2Transformer3DModel"}
SIZE = {"height": 48, "width": 80}


def load(name: str, weights: Path, dtype=torch.float32, **chosen):
    return load_model(name, weights, dtype, **{**SIZE, **chosen})


def decoded(layer) -> torch.Tensor:
    return layer.weight.double() * layer.row_scales.double() if isinstance(layer, Fp8Linear) else layer.weight.double()


def transformer_bytes(model) -> int:
    tensors = (*model.transformer.parameters(), *model.transformer.blocks.buffers())
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@pytest.mark.parametrize("name", list(CLASSES))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_linear_layers_of_the_blocks_change_and_all_others_stay(name, dtype, tmp_path):
    write_transformer(tmp_path, CLASSES[name])
    plain, eight = (load(name, tmp_path, dtype, **chosen).transformer for chosen in ({}, {"weights_dtype": "fp8"}))
    changed = {path for path, module in eight.named_modules() if isinstance(module, Fp8Linear)}
    linears = {path for path, module in plain.named_modules() if type(module) is torch.nn.Linear}
    assert changed == {path for path in linears if path.startswith("blocks.")} and len(changed) == 2 * 10
    own, theirs = eight.state_dict(), plain.state_dict()
    assert own.keys() == theirs.keys()
    for key, tensor in theirs.items():
        if key.removesuffix(".weight") not in changed:
            assert torch.equal(own[key], tensor) and own[key].dtype == tensor.dtype, key
    exact = load(name, tmp_path, torch.float32).transformer
    for path in changed:
        weight = exact.get_submodule(path).weight.double()
        bound = (weight.abs() / 16).clamp(min=float(weight.abs().max()) / 448 / 1024)
        assert bool(((decoded(eight.get_submodule(path)) - weight).abs() <= bound * (1 + 1e-4)).all())


@pytest.mark.parametrize("name", list(CLASSES))
def test_the_output_is_close_to_the_plain_one_and_the_bytes_are_fewer(name, tmp_path):
    """Relative error of a velocity over a history: about as much as the error of the weights, 2.6 %."""
    write_transformer(tmp_path, CLASSES[name])
    plain, eight = (load(name, tmp_path, **chosen) for chosen in ({}, {"weights_dtype": "fp8"}))
    if name != "self-forcing":
        plain, eight = (_without_guidance(model) for model in (plain, eight))
    error = relative_error(*(denoise_after_commits(model, "fp32").velocity for model in (eight, plain)))
    assert 1e-4 < error < 0.05
    linear_weights = 2 * (8 * 32 * 32 + 2 * 32 * 48)
    rows = 2 * (9 * 32 + 48)
    assert transformer_bytes(plain) - transformer_bytes(eight) == 3 * linear_weights - 4 * rows


def _without_guidance(model):
    from dataclasses import replace

    return type(model)(model.transformer, replace(model.settings, guidance_scale=1.0))


def test_a_video_through_the_engine_is_that_of_the_decoded_weights(tmp_path):
    """The plain model with the weights that the codes stand for makes the same video."""
    write_transformer(tmp_path, CLASSES["self-forcing"])
    plain = load("self-forcing", tmp_path)
    eight = load("self-forcing", tmp_path, weights_dtype="fp8")
    for path, module in eight.transformer.named_modules():
        if isinstance(module, Fp8Linear):
            plain.transformer.get_submodule(path).weight.data = decoded(module).float()
    videos = [generate(engine_of(model), {"a": embeddings(1)}, [9])["a"] for model in (eight, plain)]
    torch.testing.assert_close(*videos, rtol=0, atol=1e-4)


def test_loras_are_added_before_weights_are_rounded(tmp_path):
    theirs = write_transformer(tmp_path / "model", CLASSES["self-forcing"])
    pairs = random_pairs(theirs)
    save_file(peft_file(pairs), tmp_path / "lora.safetensors")
    chosen = {"weights_dtype": "fp8", "loras": [f"{tmp_path / 'lora.safetensors'}:0.5"]}
    eight, expected = load("self-forcing", tmp_path / "model", **chosen).transformer, merged(theirs, pairs, 0.5)
    for path, module in eight.named_modules():
        if isinstance(module, Fp8Linear):
            weight = expected[f"{path}.weight"]
            bound = (weight.abs() / 16).clamp(min=float(weight.abs().max()) / 448 / 1024)
            assert bool(((decoded(module) - weight).abs() <= bound * (1 + 1e-4)).all()), path


@pytest.mark.parametrize("eight_bit", [False, True])
def test_a_scaled_file_of_comfyui_gives_codes_times_scales(eight_bit, tmp_path):
    """Linear layers of the blocks as ComfyUI's scaled files have them, its names, its marker."""
    transformer = tiny_transformer(CLASSES["self-forcing"])
    expected, tensors = {}, {}
    for name, tensor in original_table(transformer, "model.diffusion_model.").items():
        if tensor.ndim == 2 and ".blocks." in name and name.endswith(".weight"):
            scale = tensor.abs().max() / 448
            tensors[name] = (tensor / scale).to(torch.float8_e4m3fn)
            tensors[name.removesuffix("weight") + "scale_weight"] = scale
            expected[name] = tensors[name].double() * scale.double()
        else:
            tensors[name], expected[name] = tensor, tensor.double()
    tensors["model.diffusion_model.scaled_fp8"] = torch.empty(2, dtype=torch.float8_e4m3fn)
    save_file(tensors, tmp_path / "scaled.safetensors")
    write_heads(tmp_path)
    chosen = {"weights_dtype": "fp8"} if eight_bit else {}
    loaded = load("self-forcing", tmp_path / "scaled.safetensors", **chosen).transformer
    library = {name: tensor for name, tensor in original_table(loaded, "model.diffusion_model.").items()}
    from tests.models.wan.base.published import converted_names

    for name, library_name in converted_names(2).items():
        published = f"model.diffusion_model.{name}"
        module = loaded.get_submodule(library_name.rpartition(".")[0]) if "scale_shift" not in library_name else None
        is_code = eight_bit and isinstance(module, Fp8Linear) and name.endswith("weight")
        own = decoded(module) if is_code else library[published].double()
        torch.testing.assert_close(own, expected[published], rtol=1e-6, atol=1e-12)
        if is_code:
            assert torch.equal(module.weight.float(), tensors[published].float())


@pytest.mark.parametrize("name", ["demo", "walk"])
def test_models_that_ship_with_pagedvid_take_their_weights_as_they_are(name):
    with pytest.raises(
        ConfigError, match=rf"{name} is small and takes its weights as they are; remove model.weights_dtype"
    ):
        spec_of(name, weights_dtype="fp8")


def test_other_formats_are_refused():
    with pytest.raises(ConfigError, match=r"model.weights_dtype is 'int4'; allowed is null, or fp8"):
        spec_of("self-forcing", weights_dtype="int4")

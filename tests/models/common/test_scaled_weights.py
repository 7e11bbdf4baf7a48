"""Checkpoints in eight bits with their scales beside: the weights are codes times scales, in every file layout."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pagedvid.errors import ConfigError
from pagedvid.models.common.checkpoint import load_checkpoint, tensor_shapes
from pagedvid.models.common.fp8_linear import Fp8Linear, use_fp8

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
SCALE_SHAPES = [(), (1,), (6,), (6, 1)]


class Small(nn.Module):
    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.first = nn.Linear(4, 6, dtype=dtype)
        self.second = nn.Linear(6, 4, bias=False, dtype=dtype)


def on_meta(dtype: torch.dtype = torch.float32) -> Small:
    with torch.device("meta"):
        return Small(dtype)


def content(kind: str = "scale_weight", shape: tuple[int, ...] = (), codes: torch.dtype = E4M3) -> dict[str, Tensor]:
    """The first layer in eight bits with a scale, the second one too, with a scale of one number."""
    draw = torch.Generator().manual_seed(0)
    return {
        "norm.weight": torch.randn(4, generator=draw),
        "norm.bias": torch.randn(4, generator=draw),
        "first.weight": (torch.randn(6, 4, generator=draw) * 50).to(codes),
        f"first.{kind}": torch.rand(shape, generator=draw) + 0.01,
        "first.bias": torch.randn(6, generator=draw),
        "second.weight": (torch.randn(4, 6, generator=draw) * 50).to(codes),
        f"second.{kind}": torch.tensor(0.03),
    }


def expected(tensors: dict[str, Tensor], layer: str, kind: str = "scale_weight") -> Tensor:
    """In float64."""
    scale = tensors[f"{layer}.{kind}"].double()
    return tensors[f"{layer}.weight"].double() * (scale.reshape(-1, 1) if scale.ndim else scale)


def write(folder: Path, form: str, tensors: dict[str, Tensor], prefix: str = "") -> Path:
    tensors = {prefix + name: tensor for name, tensor in tensors.items()}
    if form == "pt":
        torch.save(tensors, folder / "w.pt")
        return folder / "w.pt"
    if form == "safetensors":
        save_file(tensors, folder / "w.safetensors")
        return folder / "w.safetensors"
    weight_map = {}
    for number, (name, tensor) in enumerate(tensors.items()):  # every scale in another file than its weight
        weight_map[name] = f"w-{number}.safetensors"
        save_file({name: tensor}, folder / weight_map[name])
    (folder / "w.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


@pytest.mark.parametrize("form", ["safetensors", "pt", "shards"])
@pytest.mark.parametrize("kind", ["scale_weight", "weight_scale"])
@pytest.mark.parametrize("shape", SCALE_SHAPES)
@pytest.mark.parametrize("codes", [E4M3, E5M2])
def test_weights_are_codes_times_scales(codes, shape, kind, form, tmp_path):
    tensors, module = content(kind, shape, codes), on_meta()
    path = write(tmp_path, form, tensors)
    load_checkpoint(module, path)
    for layer in ("first", "second"):
        torch.testing.assert_close(
            module.get_submodule(layer).weight.double(), expected(tensors, layer, kind), rtol=1e-6, atol=0
        )
    assert torch.equal(module.first.bias, tensors["first.bias"])
    assert tensor_shapes(path) == {name: tuple(tensor.shape) for name, tensor in Small().state_dict().items()}


def test_what_comfyui_writes_besides_is_left_out(tmp_path):
    tensors = content() | {
        "first.scale_input": torch.ones(()),
        "second.comfy_quant": torch.tensor(list(b'{"format": "float8_e4m3fn"}'), dtype=torch.uint8),
        "scaled_fp8": torch.zeros(2, dtype=E4M3),
    }
    module = on_meta(torch.bfloat16)
    load_checkpoint(module, write(tmp_path, "safetensors", tensors, "model.diffusion_model."))
    for layer in ("first", "second"):
        own = module.get_submodule(layer).weight
        assert own.dtype == torch.bfloat16
        torch.testing.assert_close(own.double(), expected(tensors, layer), rtol=2**-8, atol=0)


@pytest.mark.parametrize("shape", SCALE_SHAPES)
def test_layers_in_eight_bits_take_the_codes_as_they_are(shape, tmp_path):
    """Rounding them a second time would double the error."""
    tensors, module = content(shape=shape), on_meta()
    use_fp8(module)
    load_checkpoint(module, write(tmp_path, "safetensors", tensors))
    for layer in ("first", "second"):
        own = module.get_submodule(layer)
        assert isinstance(own, Fp8Linear)
        assert torch.equal(own.weight.float(), tensors[f"{layer}.weight"].float())
        decoded = own.weight.double() * own.row_scales.double()
        torch.testing.assert_close(decoded, expected(tensors, layer), rtol=1e-6, atol=0)
    assert torch.equal(module.norm.weight, tensors["norm.weight"])


def test_codes_without_scales_are_not_rounded_twice(tmp_path):
    tensors = {name: tensor for name, tensor in content().items() if "scale" not in name}
    module = on_meta()
    use_fp8(module)
    load_checkpoint(module, write(tmp_path, "safetensors", tensors))
    for name, layer in (("first", module.first), ("second", module.second)):
        assert isinstance(layer, Fp8Linear)
        assert torch.equal(layer.weight.float() * layer.row_scales, tensors[f"{name}.weight"].float())


def test_layers_in_eight_bits_take_plain_weights_too(tmp_path):
    torch.manual_seed(0)
    plain, module = Small(), on_meta()
    use_fp8(module)
    load_checkpoint(module, write(tmp_path, "safetensors", plain.state_dict()))
    decoded = module.first.weight.double() * module.first.row_scales.double()
    error = (decoded - plain.first.weight.detach().double()).abs()
    assert bool((error <= plain.first.weight.abs().amax(dim=1, keepdim=True) / 16).all()) and float(error.max()) > 0
    assert not module.first.weight.is_meta and not module.first.row_scales.is_meta and not module.first.bias.is_meta


def drop(name: str):
    return lambda tensors: {key: tensor for key, tensor in tensors.items() if key != name}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (drop("second.scale_weight"), "second.weight"),
        (lambda tensors: tensors | {"first.scale_weight": torch.ones(3, 2)}, "first.weight"),
        (lambda tensors: tensors | {"first.scale_weight": torch.ones(4)}, "first.weight"),
        (lambda tensors: tensors | {"first.scale_weight": torch.ones(6, 1).to(torch.uint8)}, "first.weight"),
        (lambda tensors: tensors | {"first.weight_scale": torch.ones(6)}, "first.weight"),
        (lambda tensors: tensors | {"first.bias": torch.ones(6).to(E4M3)}, "first.weight"),
        (lambda tensors: tensors | {"second.weight": torch.ones(4, 6, dtype=torch.int8)}, "second.weight"),
    ],
    ids=["no scale", "blocks", "other rows", "codes", "two", "bias", "integers"],
)
@pytest.mark.parametrize("form", ["safetensors", "pt"])
def test_scales_that_are_not_understood_are_refused(change, named, form, tmp_path):
    path = write(tmp_path, form, change(content()))
    for call in (tensor_shapes, lambda path: load_checkpoint(on_meta(), path)):
        with pytest.raises(ConfigError, match=rf"numbers that are not weights by themselves: .*{named}"):
            call(path)


def test_numbers_beyond_the_dtype_are_named(tmp_path):
    tensors = content() | {"first.scale_weight": torch.tensor(3e38)}
    for eight_bit in (False, True):
        module = on_meta()
        if eight_bit:
            use_fp8(module)
        with pytest.raises(ConfigError, match=r"first.weight holds NaN or infinity"):
            load_checkpoint(module, write(tmp_path, "safetensors", tensors))

"""Linear layers in eight bits: the bound on every weight, what stays, and codes that a file already had."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pagedvid.models.common.fp8_linear import FP8, Fp8Linear, row_codes, use_fp8


def weights(rows: int = 48, columns: int = 64, seed: int = 0) -> torch.Tensor:
    """Rows of very different sizes, one of them zero, one with an outlier."""
    draw = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=draw) * 10 ** torch.linspace(-6, 4, rows).unsqueeze(1)
    weight[3] = 0
    weight[5, 7] = 1000 * weight[5].abs().max()
    return weight


def e4m3_numbers() -> torch.Tensor:
    """All finite e4m3 numbers, float64, by the format's definition: sign, 4 bits of exponent, 3 of mantissa."""
    numbers = []
    for bits in range(256):
        sign, exponent, mantissa = (-1) ** (bits >> 7), (bits >> 3) & 15, bits & 7
        if exponent == 15 and mantissa == 7:
            continue  # NaN
        numbers.append(sign * (mantissa / 8 * 2**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7)))
    return torch.tensor(sorted(set(numbers)), dtype=torch.float64)


def test_every_weight_becomes_the_nearest_multiple_of_its_row_s_scale():
    weight = weights()
    codes, scales = row_codes(weight)
    assert codes.dtype == FP8 and scales.shape == (48, 1)
    grid = e4m3_numbers()
    for row in range(len(weight)):
        exact = weight[row].double()
        scale = max(float(exact.abs().max()) / 448, 0.0) or 1.0
        assert float(scales[row]) == pytest.approx(scale, rel=1e-6)
        nearest = (exact.unsqueeze(1) - grid * scale).abs().amin(dim=1)
        own = (codes[row].double() * scales[row].double() - exact).abs()
        assert bool((own <= nearest + 1e-5 * exact.abs() + 1e-6 * scale).all()), row
        assert bool((own <= (exact.abs() / 16).clamp(min=scale / 1024) * (1 + 1e-5)).all())
    assert not codes[3].float().any() and bool(codes.float().isfinite().all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_computes_with_the_decoded_weights_in_the_dtype_of_its_input(dtype):
    torch.manual_seed(0)
    linear, x = nn.Linear(64, 48).to(dtype).requires_grad_(False), torch.randn(2, 5, 64, dtype=dtype)
    eight = Fp8Linear(linear)
    eight.hold(linear.weight.float())
    out = eight(x)
    decoded = eight.weight.double() * eight.row_scales.double()
    expected = x.double() @ decoded.T + linear.bias.double()
    assert out.dtype == dtype and out.shape == (2, 5, 48)
    assert float((out.double() - expected).norm() / expected.norm()) < (1e-6 if dtype == torch.float32 else 6e-3)
    plain = linear(x).double()
    assert 1e-3 < float((expected - plain).norm() / plain.norm()) < 0.05


@pytest.mark.parametrize("shape", [(), (1,), (48,), (48, 1)])
def test_codes_that_a_file_already_had_come_back(shape):
    draw = torch.Generator().manual_seed(1)
    codes = (torch.randn(48, 64, generator=draw) * 40).clamp(-448, 448).to(FP8)
    scale = torch.rand(shape, generator=draw) / 100 + 1e-3
    weight = codes.float() * (scale.reshape(-1, 1) if scale.ndim else scale)
    again, scales = row_codes(weight, scale)
    assert torch.equal(again.float(), codes.float())
    assert torch.equal(scales, scale.reshape(-1, 1).expand(48, 1))
    changed, _ = row_codes(weight + 1e-3, scale)  # as after a LoRA: rounded anew
    assert float((changed.float() - codes.float()).abs().max()) > 0


def test_other_layers_stay_as_they_are():
    block = nn.ModuleDict(
        {"norm": nn.LayerNorm(8), "inner": nn.Sequential(nn.Linear(8, 4), nn.GELU()), "table": nn.Embedding(3, 8)}
    )
    before = {name: id(module) for name, module in block.named_modules()}
    use_fp8(block)
    changed = [name for name, module in block.named_modules() if before[name] != id(module)]
    assert changed == ["inner.0"] and isinstance(block["inner"][0], Fp8Linear)
    assert set(block.state_dict()) == {"norm.weight", "norm.bias", "inner.0.weight", "inner.0.bias", "table.weight"}


def test_bytes_are_one_for_each_weight_and_four_for_each_row():
    linear = nn.Linear(64, 48, bias=False)
    eight = Fp8Linear(linear)
    eight.hold(linear.weight.detach())
    tensors = [*eight.parameters(), *eight.buffers()]
    assert sum(tensor.numel() * tensor.element_size() for tensor in tensors) == 48 * 64 + 4 * 48

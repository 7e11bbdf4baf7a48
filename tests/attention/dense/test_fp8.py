"""FP8 attention: the roundings of flash-attn 3 as torch-cpu-fp8 emulates them, and the call of the library itself."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pagedvid.attention.dense.choice import choose_fp8_provider
from pagedvid.attention.dense.flash_attn_3_fp8 import FlashAttention3Fp8
from pagedvid.attention.dense.fp8 import to_fp8
from pagedvid.attention.dense.torch_cpu_fp8 import TorchCpuFp8, block_keys
from pagedvid.errors import BackendError
from tests.attention.dense import libraries
from tests.attention.dense.libraries import dense, tokens

SCALE, HEADS = 0.2, 2


def all_fp8() -> Tensor:
    """Every finite number of float8_e4m3fn, ascending, from its definition: 4 bits of exponent, 3 of mantissa."""
    positive = [m * 2.0**-9 for m in range(8)] + [(8 + m) * 2.0 ** (e - 10) for e in range(1, 16) for m in range(8)]
    positive = positive[:-1]  # the largest pattern is NaN
    return torch.tensor([-x for x in reversed(positive[1:])] + positive, dtype=torch.float64)


def rounded(x: Tensor) -> Tensor:
    """The nearest of these numbers, ties to the even mantissa, float64."""
    table = all_fp8()
    above = torch.searchsorted(table, x.double()).clamp(1, len(table) - 1)
    below = above - 1
    down, up = x.double() - table[below], table[above] - x.double()
    is_even = (below - len(table) // 2) % 2 == 0
    return torch.where((down < up) | ((down == up) & is_even), table[below], table[above])


def make(num_sequences: int, num_queries: int, num_keys: int, group: int, head_dim: int) -> tuple[Tensor, ...]:
    """(q, k8, v8, key scales, value scales)."""
    q = tokens((num_sequences, num_queries, HEADS * group, head_dim), 0)
    k, v = (tokens((num_sequences, HEADS, num_keys, head_dim), seed).transpose(1, 2) for seed in (1, 2))
    (k8, key_scales), (v8, value_scales) = to_fp8(3 * k, HEADS), to_fp8(v, HEADS)
    return q, k8, v8, key_scales, value_scales


def oracle(q: Tensor, k8: Tensor, v8: Tensor, scale: float, key_scales: Tensor, value_scales: Tensor):
    """(out, lse [E, T, Hq]) in float64, query by query and block by block, as flash-attn 3 goes through the keys."""
    group, size = q.shape[2] // k8.shape[2], block_keys(q.shape[3])
    out, lse = torch.zeros(q.shape, dtype=torch.float64), torch.zeros(q.shape[:3], dtype=torch.float64)
    for e in range(q.shape[0]):
        for head in range(q.shape[2]):
            h = head // group
            own = q[e, :, h * group : (h + 1) * group].double()
            q_scale = own.abs().max().float().double() / 448
            q8 = rounded(q[e, :, head].double() / q_scale)
            scores = scale * q_scale * key_scales[e, h].double() * (q8 @ k8[e, :, h].double().T)
            for t, row in enumerate(scores):
                highest, total, summed = -torch.inf, 0.0, torch.zeros(q.shape[3], dtype=torch.float64)
                for first in reversed(range(0, len(row), size)):
                    block = row[first : first + size]
                    before, highest = highest, max(highest, float(block.max()))
                    p = 256 * torch.exp(block - highest)
                    kept = float(torch.exp(torch.tensor(before - highest)))
                    total = total * kept + p.sum()
                    summed = summed * kept + rounded(p) @ v8[e, first : first + size, h].double()
                out[e, t, head] = summed / total * value_scales[e, h]
                lse[e, t, head] = highest + torch.log(total / 256)
    return out, lse


def test_rounding_is_to_the_nearest_even_and_saturates() -> None:
    table = all_fp8()
    between = (table[1:] + table[:-1]) / 2
    x = torch.cat([table, between, between + 1e-4, between - 1e-4, 440 * tokens((1000,), 0).clamp(-1, 1)]).float()
    got, scales = to_fp8(x[None, :, None, None], 1)
    assert scales.item() == 1.0  # the largest magnitude is 448 already
    assert torch.equal(got.flatten().double(), rounded(x))


def test_scales_are_by_sequence_and_head_and_zeros_stay_zero() -> None:
    x = tokens((3, 7, 4, 16), 0)
    x[1] = 0
    x8, scales = to_fp8(x, 2)
    assert x8.dtype == torch.float8_e4m3fn and x8.shape == x.shape and scales.shape == (3, 2)
    back = x8.float().unflatten(2, (2, 2)) * scales[:, None, :, None, None]
    assert (back[1] == 0).all()
    expected = x.unflatten(2, (2, 2)).abs().amax((1, 3, 4))
    torch.testing.assert_close(back.abs().amax((1, 3, 4)), expected)
    torch.testing.assert_close(back.flatten(2, 3), x, rtol=2**-4, atol=1e-4)


def test_what_is_expanded_stays_so() -> None:
    x8, scales = to_fp8(tokens((1, 7, 4, 16), 0).expand(5, -1, -1, -1), 2)
    assert x8.shape == (5, 7, 4, 16) and x8.stride(0) == 0 and scales.shape == (5, 2)


@pytest.mark.parametrize("head_dim", [16, 64, 128])
@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize(("num_sequences", "num_queries", "num_keys"), [(1, 3, 1), (2, 5, 160), (1, 4, 500)], ids=str)
def test_emulation_rounds_as_flash_attn_3(
    num_sequences: int, num_queries: int, num_keys: int, group: int, head_dim: int
) -> None:
    """Within the rounding of the output to bfloat16, and an element of P that float32 rounds to the other side."""
    q, k8, v8, key_scales, value_scales = make(num_sequences, num_queries, num_keys, group, head_dim)
    out, lse = TorchCpuFp8()(q, k8, v8, SCALE, key_scales, value_scales)
    expected, expected_lse = oracle(q, k8, v8, SCALE, key_scales, value_scales)
    assert out.dtype == q.dtype and lse.dtype == torch.float32 and lse.shape == q.shape[:3]
    torch.testing.assert_close(lse.double(), expected_lse, rtol=0, atol=2e-5)
    torch.testing.assert_close(out.double(), expected, rtol=2**-8, atol=2e-4)


def test_it_is_close_to_attention_over_what_the_fp8_tensors_hold() -> None:
    q, k8, v8, key_scales, value_scales = make(2, 40, 700, 2, 64)
    out, lse = TorchCpuFp8()(q, k8, v8, SCALE, key_scales, value_scales)
    q8, query_scales = to_fp8(q, HEADS)
    exact, exact_lse = dense(
        q8.float() * query_scales.repeat_interleave(2, dim=1)[:, None, :, None],
        k8.float() * key_scales[:, None, :, None],
        v8.float() * value_scales[:, None, :, None],
        SCALE,
    )
    torch.testing.assert_close(lse.double(), exact_lse.transpose(1, 2), rtol=0, atol=2e-5)  # P is summed unrounded
    assert (out.double() - exact).norm() / exact.norm() < 0.03


def test_expanded_queries_and_dtypes() -> None:
    q, k8, v8, key_scales, value_scales = make(3, 6, 20, 2, 32)
    provider = TorchCpuFp8()
    for dtype in (torch.float32, torch.bfloat16):
        expanded = q[:1].to(dtype).expand(3, -1, -1, -1)
        out, lse = provider(expanded, k8, v8, SCALE, key_scales, value_scales)
        again, again_lse = provider(expanded.contiguous(), k8, v8, SCALE, key_scales, value_scales)
        assert out.dtype == dtype and torch.equal(out, again) and torch.equal(lse, again_lse)


def test_the_call_of_flash_attn_3(monkeypatch) -> None:
    q, k8, v8, key_scales, value_scales = make(2, 9, 70, 3, 32)
    q = q.bfloat16()
    with monkeypatch.context() as patch:
        libraries.flash_attn_3(patch)
        out, lse = FlashAttention3Fp8()(q, k8, v8, SCALE, key_scales, value_scales)
    assert out.dtype == torch.bfloat16 and out.shape == q.shape and lse.shape == q.shape[:3]
    expected, expected_lse = TorchCpuFp8()(q, k8, v8, SCALE, key_scales, value_scales)
    torch.testing.assert_close(lse, expected_lse, rtol=0, atol=0.02)
    assert (out.float() - expected.float()).norm() / expected.float().norm() < 0.05


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_library_on_this_device() -> None:
    """flash-attn 3 against its emulation."""
    q, k8, v8, key_scales, value_scales = (x.cuda() for x in make(2, 300, 1000, 2, 128))
    try:
        provider = choose_fp8_provider(q.device, torch.bfloat16, 128)
    except BackendError as error:
        pytest.skip(str(error))
    out, lse = provider(q.bfloat16(), k8, v8, SCALE, key_scales, value_scales)
    inputs = (x.cpu() for x in (q.bfloat16(), k8, v8))
    expected, expected_lse = TorchCpuFp8()(*inputs, SCALE, key_scales.cpu(), value_scales.cpu())
    torch.testing.assert_close(lse.cpu(), expected_lse, rtol=0, atol=1e-2)
    assert (out.cpu().float() - expected.float()).norm() / expected.float().norm() < 0.01

"""The oracle itself, against PyTorch's attention and against the definition of the correction."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.attention.oracle import Keys, oracle_attention

SCALE = 64**-0.5


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tables(first_token: int, num_tokens: int) -> tuple[Tensor, Tensor]:
    angles = torch.arange(first_token, first_token + num_tokens)[:, None] * 10.0 ** -torch.linspace(0, 2, 32).double()
    return angles.cos(), angles.sin()


def test_without_step_sizes_it_is_attention_over_all_keys():
    q, k, v = randn(7, 64, seed=0), randn(30, 64, seed=1), randn(30, 64, seed=2)
    out, lse = oracle_attention(q, [Keys(k[:11], v[:11]), Keys(k[11:], v[11:])], SCALE)
    torch.testing.assert_close(out, F.scaled_dot_product_attention(q[None], k[None], v[None])[0])
    torch.testing.assert_close(lse, torch.logsumexp(SCALE * q @ k.T, dim=1))


def test_keys_before_rotary_embedding_are_rotated():
    q, k, v = randn(7, 64, seed=0), randn(30, 64, seed=1), randn(30, 64, seed=2)
    cos, sin = tables(5, 30)
    rotated = torch.complex(*k.chunk(2, dim=-1)) * torch.complex(cos, sin)
    expected, _ = oracle_attention(q, [Keys(torch.cat([rotated.real, rotated.imag], dim=-1), v)], SCALE)
    out, _ = oracle_attention(q, [Keys(k, v, cos=cos, sin=sin)], SCALE)
    torch.testing.assert_close(out, expected)


def test_each_key_is_corrected_by_its_own_step_size():
    q, k, v, step_size = (
        randn(7, 64, seed=0),
        randn(9, 64, seed=1),
        randn(9, 64, seed=2),
        randn(9, 64, seed=3).abs() * 4,
    )
    x = SCALE * q[:, None].abs() * step_size / 2
    b = torch.log(torch.sinh(x) / x).sum(-1)
    for alpha in (1.0, 0.4):
        expected = torch.softmax(SCALE * q @ k.T - alpha * b, dim=1) @ v
        out, lse = oracle_attention(q, [Keys(k, v, step_size, alpha=alpha)], SCALE)
        torch.testing.assert_close(out, expected, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(lse, torch.logsumexp(SCALE * q @ k.T - alpha * b, dim=1), rtol=1e-6, atol=1e-6)


def test_the_correction_sees_the_query_as_the_key_does():
    """A rotated key is corrected with the query un-rotated by its angle, as if neither had been rotated."""
    q, k, v, step_size = (
        randn(1, 64, seed=0),
        randn(1, 64, seed=1),
        randn(1, 64, seed=2),
        randn(1, 64, seed=3).abs() * 4,
    )
    cos, sin = tables(17, 1)
    rotated = torch.complex(*q.chunk(2, dim=-1)) * torch.complex(cos, sin)
    q_rotated = torch.cat([rotated.real, rotated.imag], dim=-1)
    _, expected = oracle_attention(q, [Keys(k, v, step_size)], SCALE)
    _, lse = oracle_attention(q_rotated, [Keys(k, v, step_size, cos, sin)], SCALE)
    torch.testing.assert_close(lse, expected)


def test_without_step_sizes_there_is_no_correction():
    q, k, v = randn(7, 64, seed=0), randn(9, 64, seed=1), randn(9, 64, seed=2)
    plain = oracle_attention(q, [Keys(k, v)], SCALE)
    for corrected in (Keys(k, v, torch.zeros(9, 64)), Keys(k, v, torch.ones(9, 64), alpha=0.0)):
        for a, b in zip(oracle_attention(q, [corrected], SCALE), plain, strict=True):
            assert torch.equal(a, b)

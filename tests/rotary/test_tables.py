"""Rotary embedding: its inverse, its layouts, and what it does not change."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pagedvid.errors import ConfigError
from pagedvid.rotary.tables import pair_mean_square, rotate, to_half_layout, unrotate


def tables(num_tokens: int, head_dim: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    frequencies = 10.0 ** -torch.linspace(0, 2, head_dim // 2, dtype=torch.float64)
    angles = torch.arange(num_tokens)[:, None] * frequencies
    return angles.cos().to(dtype), angles.sin().to(dtype)


def complex_rotation(x: Tensor, layout: str) -> Tensor:
    """Rotation of x [T, D] as multiplication of complex numbers, in the layout of x."""
    cos, sin = tables(*x.shape)
    rotation = torch.complex(cos, sin)
    if layout == "half":
        rotated = torch.complex(*x.chunk(2, dim=-1)) * rotation
        return torch.cat([rotated.real, rotated.imag], dim=-1)
    return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * rotation).flatten(-2)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("head_dim", [2, 64, 128])
def test_rotation_is_complex_multiplication(head_dim):
    x = randn(40, head_dim)
    torch.testing.assert_close(rotate(x, *tables(40, head_dim)), complex_rotation(x, "half"))


@pytest.mark.parametrize("layout", ["half", "interleaved"])
def test_both_layouts_give_the_scores_of_their_own_definition(layout):
    q, k = randn(30, 64), randn(30, 64, seed=1)
    expected = complex_rotation(q, layout) @ complex_rotation(k, layout).T
    rotated = [rotate(to_half_layout(x, layout), *tables(30, 64)) for x in (q, k)]
    torch.testing.assert_close(rotated[0] @ rotated[1].T, expected)


def test_half_layout_is_left_alone():
    x = randn(3, 8)
    assert to_half_layout(x, "half") is x
    assert to_half_layout(torch.arange(8), "interleaved").tolist() == [0, 2, 4, 6, 1, 3, 5, 7]


def test_unknown_layout():
    with pytest.raises(ConfigError, match="unknown rotary layout 'split'; allowed are half, interleaved"):
        to_half_layout(randn(3, 8), "split")


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 1e-6)])
def test_unrotate_is_the_inverse(dtype, tolerance):
    x = randn(40, 64).to(dtype)
    cos, sin = tables(40, 64, dtype)
    assert float((unrotate(rotate(x, cos, sin), cos, sin) - x).abs().max()) < 8 * tolerance
    assert float((rotate(unrotate(x, cos, sin), cos, sin) - x).abs().max()) < 8 * tolerance


def test_rotation_writes_into_a_given_tensor_and_broadcasts_over_heads():
    x = randn(5, 40, 64)
    cos, sin = tables(40, 64)
    out = torch.full_like(x, torch.nan)
    assert rotate(x, cos, sin, out=out) is out
    for head in range(5):
        torch.testing.assert_close(out[head], rotate(x[head], cos, sin))


def test_scores_depend_on_the_distance_of_positions_only():
    q, k = randn(1, 64), randn(1, 64, seed=1)
    cos, sin = tables(50, 64)
    scores = [rotate(q, cos[i], sin[i]) @ rotate(k, cos[j], sin[j]).T for i, j in ((7, 2), (25, 20), (49, 44))]
    torch.testing.assert_close(scores[0], scores[1])
    torch.testing.assert_close(scores[0], scores[2])


def test_pair_mean_square_is_the_same_before_and_after_rotation():
    q = randn(40, 64).float()
    cos, sin = tables(40, 64, torch.float32)
    mean = pair_mean_square(q)
    torch.testing.assert_close(mean, pair_mean_square(rotate(q, cos, sin)), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(mean[:, :32], mean[:, 32:])
    torch.testing.assert_close(mean.sum(1), q.square().sum(1))
    assert pair_mean_square(q.bfloat16()).dtype == torch.float32

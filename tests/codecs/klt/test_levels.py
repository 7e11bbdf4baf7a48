"""Fixed quantizers: their levels, the nearest of them, and the miss, against brute force."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pagedvid.codecs.klt.levels import POSITIVE_LEVELS, byte_values, levels, likely_miss_, nearest
from pagedvid.codecs.packing import WIDTHS

CPU = torch.device("cpu")


def lloyd_max(values: Tensor, num_levels: int) -> Tensor:
    """Levels that locally minimise the mean square error of `values` (Lloyd 1957)."""
    found = torch.quantile(values, (torch.arange(num_levels) + 0.5) / num_levels)
    for _ in range(500):
        cell = torch.bucketize(values, (found[1:] + found[:-1]) / 2)
        found = torch.zeros(num_levels).index_add_(0, cell, values) / torch.bincount(cell, minlength=num_levels)
    return found


@pytest.mark.parametrize("width", [1, 2, 4])
def test_levels_are_those_of_lloyd_and_max_for_a_laplace_distribution(width):
    share = (torch.arange(200_000) + 0.5) / 200_000
    laplace = -(share - 0.5).sign() * torch.log1p(-2 * (share - 0.5).abs()) / 2**0.5
    expected = lloyd_max(laplace, 1 << width)
    torch.testing.assert_close(levels(width, CPU), expected, atol=0.01, rtol=0.01)


def distances(width: int, scale: float = 3.0) -> tuple[Tensor, Tensor]:
    """(numbers, their distance to every level)."""
    x = scale * torch.randn(7, 11, 1300, generator=torch.Generator().manual_seed(0))
    return x, (x[..., None] - levels(width, CPU)).abs()


@pytest.mark.parametrize("width", WIDTHS)
def test_the_nearest_level_is_found(width):
    x, distance = distances(width)
    codes = nearest(x, width)
    assert codes.dtype == torch.float32 and codes.min() >= 0 and codes.max() < 1 << width
    half_a_cell = 1 / 128 if width == 4 else 1e-6  # on either side of an edge
    chosen = distance.gather(-1, codes.long()[..., None])[..., 0]
    assert (chosen <= distance.amin(-1) + half_a_cell).all()


@pytest.mark.parametrize("width", [1, 2, 8])
def test_the_miss_is_what_is_left(width):
    x, distance = distances(width)
    torch.testing.assert_close(likely_miss_(x.clone(), width).abs(), distance.amin(-1), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("scale", [0.1, 0.5, 1.0, 2.0, 5.0])
def test_the_likely_miss_of_four_bits_has_the_mean_square_of_the_true_one(scale):
    """Measured: from 0.91 to 1.15 of it."""
    x, distance = distances(4, scale)
    likely, true = likely_miss_(x.clone(), 4).square().mean(), distance.amin(-1).square().mean()
    assert 0.8 * true < likely < 1.25 * true


@pytest.mark.parametrize("width", WIDTHS)
def test_bytes_stand_for_the_levels_of_their_fields(width):
    values = byte_values(width, CPU)[[0, 255]].flatten()
    lowest = -POSITIVE_LEVELS[width][-1]
    assert values.tolist() == pytest.approx([lowest] * (8 // width) + [-lowest] * (8 // width))

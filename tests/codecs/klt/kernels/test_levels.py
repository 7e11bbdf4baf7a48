"""Quantizers in kernels, against those of codecs/klt/levels.py."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from pagedvid.codecs.klt import levels
from pagedvid.codecs.klt.kernels.levels import likely_miss, nearest, reach_of, scale_byte_of, scale_of
from pagedvid.codecs.klt.levels import POSITIVE_LEVELS
from pagedvid.codecs.klt.scales import scales
from pagedvid.codecs.packing import WIDTHS
from tests.devices import DEVICE

SIZE = 8192


@triton.jit
def quantize(x, codes, misses, reach, SIZE: tl.constexpr, WIDTH: tl.constexpr):
    place = tl.arange(0, SIZE)
    numbers = tl.load(x + place)
    width = tl.full([SIZE], WIDTH, tl.int32)
    tl.store(codes + place, nearest(numbers, WIDTH))
    tl.store(misses + place, likely_miss(numbers, width))
    tl.store(reach + place, reach_of(width))


@triton.jit
def scale_and_back(scale_bytes, scale, back, SIZE: tl.constexpr):
    place = tl.arange(0, SIZE)
    found = scale_of(tl.load(scale_bytes + place))
    tl.store(scale + place, found)
    tl.store(back + place, scale_byte_of(found))


def numbers() -> Tensor:
    """A fine grid across the edges between levels, and some numbers far outside."""
    x = torch.linspace(-6.01, 6.03, SIZE)
    x[:6] = torch.tensor([-1e30, -1e4, -6.5, 6.5, 1e4, 1e30])
    return x


@pytest.mark.parametrize("width", WIDTHS)
def test_codes_are_of_the_nearest_levels(width: int) -> None:
    x = numbers()
    codes, misses, reach = torch.empty(SIZE, dtype=torch.int32), torch.empty(SIZE), torch.empty(SIZE)
    quantize[(1,)](x, codes, misses, reach, SIZE, width)
    ascending = levels.levels(width, DEVICE)
    assert torch.equal(codes.long(), torch.bucketize(x, (ascending[1:] + ascending[:-1]) / 2))
    expected = levels.likely_miss_(x.clone(), width)
    torch.testing.assert_close(misses.abs(), expected.abs(), rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(reach, torch.full_like(reach, POSITIVE_LEVELS[width][-1]))


def test_scale_bytes() -> None:
    scale_bytes = torch.arange(256.0)
    scale, back = torch.empty(256), torch.empty(256)
    scale_and_back[(1,)](scale_bytes, scale, back, 256)
    torch.testing.assert_close(scale, scales(scale_bytes), rtol=1e-6, atol=0)
    torch.testing.assert_close(back, scale_bytes, rtol=0, atol=1e-4)

"""Codes in bytes: nothing is lost, nothing is wasted, and the order is the one that the docstring states."""

from __future__ import annotations

import pytest
import torch

from pagedvid.codecs.packing import WIDTHS, pack_fields


def fields_of_bytes(width: int) -> torch.Tensor:
    byte = torch.arange(256)
    return torch.stack([byte // 2**shift % 2**width for shift in range(0, 8, width)], dim=-1).float()


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("num_bytes", [0, 1, 3, 128])
def test_what_is_packed_comes_back(num_bytes, width):
    codes = torch.randint(0, 1 << width, (2, 3, num_bytes * 8 // width), generator=torch.Generator().manual_seed(0))
    packed = pack_fields(codes.float(), width)
    assert packed.shape == (2, 3, num_bytes) and packed.dtype == torch.uint8
    assert torch.equal(fields_of_bytes(width)[packed.int()].flatten(-2), codes.float())


def test_neighbours_share_a_byte_the_first_in_the_lowest_bits():
    codes = torch.tensor([1, 2, 3, 0, 0, 1, 2, 3], dtype=torch.float32)
    assert pack_fields(codes, 2).tolist() == [1 | 2 << 2 | 3 << 4 | 0 << 6, 0 | 1 << 2 | 2 << 4 | 3 << 6]

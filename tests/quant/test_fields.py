"""Codes in bytes: nothing is lost, nothing is wasted, and the order is the one that the docstring states."""

from __future__ import annotations

import pytest
import torch

from pagedvid.quant.fields import WIDTHS, pack_fields, unpack_fields


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("num_bytes", [0, 1, 3, 128])
def test_what_is_packed_comes_back(num_bytes, width):
    codes = torch.randint(0, 1 << width, (2, 3, num_bytes * 8 // width), generator=torch.Generator().manual_seed(0))
    packed = pack_fields(codes.to(torch.uint8), width)
    assert packed.shape == (2, 3, num_bytes) and packed.dtype == torch.uint8
    assert torch.equal(unpack_fields(packed, width).long(), codes)


def test_the_first_run_of_codes_is_in_the_lowest_bits():
    codes = torch.tensor(
        [1, 2, 3, 0, 0, 1, 2, 3], dtype=torch.uint8
    )  # bytes 0 and 1 hold codes 0, 2, 4, 6 and 1, 3, 5, 7
    expected = [1 | 3 << 2 | 0 << 4 | 2 << 6, 2 | 0 << 2 | 1 << 4 | 3 << 6]
    assert pack_fields(codes, 2).tolist() == expected

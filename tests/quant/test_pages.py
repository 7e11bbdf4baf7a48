"""Codes in bytes, and the fields of a record."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pagedvid.quant.pages import field_scale, join_record, pack, split_record, unpack_scaled
from tests.quant.page_reader import read_record

ALL_BITS = [2, 4, 8]


def random_codes(bits: int, head_dim: int, seed: int, lead: tuple[int, ...] = ()) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (*lead, 32 * 8 // bits, head_dim)
    return torch.randint(0, 2**bits, shape, generator=generator, dtype=torch.uint8)


@given(st.sampled_from(ALL_BITS), st.sampled_from([2, 8, 64, 128]), st.integers(0, 2**31))
def test_unpacking_gives_all_codes_back_in_token_order(bits, head_dim, seed):
    codes = random_codes(bits, head_dim, seed, lead=(2, 3))
    packed = pack(codes, bits)
    assert packed.shape == (2, 3, 32, head_dim) and packed.dtype == torch.uint8
    fields = unpack_scaled(packed, bits).double() * field_scale(bits, torch.float64, torch.device("cpu"))
    assert torch.equal(fields.flatten(-3, -2), codes.double())


@pytest.mark.parametrize("bits", ALL_BITS)
def test_bytes_lie_where_the_docstring_says(bits):
    codes = random_codes(bits, 8, seed=1)
    step, zero = torch.arange(8).half() / 7, -torch.arange(8).half()
    record = join_record(pack(codes, bits), step, zero)
    assert record.shape == (36 * 8,) and record.dtype == torch.uint8
    read_codes, read_step, read_zero = read_record(record.numpy(), bits)
    np.testing.assert_array_equal(read_codes, codes.numpy())
    np.testing.assert_array_equal(read_step, step.numpy())
    np.testing.assert_array_equal(read_zero, zero.numpy())


def test_one_int2_byte_by_hand():
    codes = torch.zeros(128, 2, dtype=torch.uint8)
    codes[5, 1], codes[37, 1], codes[69, 1], codes[101, 1] = 1, 2, 3, 2
    packed = pack(codes, 2)
    assert packed[5, 1] == 1 + (2 << 2) + (3 << 4) + (2 << 6)
    assert int(packed.sum()) == int(packed[5, 1])


@pytest.mark.parametrize("bits", ALL_BITS)
def test_a_record_splits_into_views_of_its_fields(bits):
    codes = random_codes(bits, 64, seed=2, lead=(3,))
    step, zero = torch.rand(3, 64).half(), torch.randn(3, 64).half()
    records = join_record(pack(codes, bits), step, zero)
    packed, read_step, read_zero = split_record(records)
    assert torch.equal(packed, pack(codes, bits)) and torch.equal(read_step, step) and torch.equal(read_zero, zero)
    packed[1, 4, 7] ^= 255
    assert records[1, 4 * 64 + 7] == packed[1, 4, 7]

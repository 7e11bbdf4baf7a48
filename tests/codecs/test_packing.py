"""Codes in bytes, and the fields of a record."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pagedvid.codecs.channel.codec import join_record, split_record
from pagedvid.codecs.packing import field_masks, field_scale, fill_pages, pack
from tests.codecs.page_reader import read_codes

ALL_BITS = [2, 4, 8]


def random_codes(bits: int, code_rows: int, head_dim: int, seed: int, lead: tuple[int, ...] = ()) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (*lead, code_rows * 8 // bits, head_dim)
    return torch.randint(0, 2**bits, shape, generator=generator, dtype=torch.uint8)


@given(st.sampled_from(ALL_BITS), st.integers(1, 70), st.sampled_from([1, 2, 8, 64, 128]), st.integers(0, 2**31))
def test_unpacking_gives_all_codes_back_in_token_order(bits, code_rows, head_dim, seed):
    codes = random_codes(bits, code_rows, head_dim, seed, lead=(2, 3))
    packed = pack(codes, bits)
    assert packed.shape == (2, 3, code_rows, head_dim) and packed.dtype == torch.uint8
    fields = (packed.unsqueeze(-3) & field_masks(bits, packed.device)).double() * field_scale(
        bits, torch.float64, torch.device("cpu")
    )
    assert torch.equal(fields.flatten(-3, -2), codes.double())


@pytest.mark.parametrize("bits", ALL_BITS)
@pytest.mark.parametrize("code_rows", [32, 33, 5])
def test_codes_are_where_the_docstring_says(code_rows, bits):
    codes = random_codes(bits, code_rows, 8, seed=1)
    np.testing.assert_array_equal(read_codes(pack(codes, bits).numpy(), bits), codes.numpy())


def test_one_int2_byte_by_hand():
    codes = torch.zeros(128, 2, dtype=torch.uint8)
    codes[5, 1], codes[37, 1], codes[69, 1], codes[101, 1] = 1, 2, 3, 2
    packed = pack(codes, 2)
    assert packed[5, 1] == 1 + (2 << 2) + (3 << 4) + (2 << 6)
    assert int(packed.sum()) == int(packed[5, 1])


@pytest.mark.parametrize("bits", ALL_BITS)
@pytest.mark.parametrize(("code_rows", "step_size_rows"), [(32, 2), (33, 1), (7, 1)])
def test_a_record_splits_into_views_of_its_fields(code_rows, step_size_rows, bits):
    codes = random_codes(bits, code_rows, 64, seed=2, lead=(3,))
    step_size_bytes = torch.randint(0, 256, (3, step_size_rows * 64), dtype=torch.uint8)
    zero_point = torch.randn(3, 64).half()
    records = join_record(pack(codes, bits), step_size_bytes, zero_point)
    assert records.shape == (3, (code_rows + step_size_rows + 2) * 64) and records.dtype == torch.uint8
    packed, read_step_sizes, read_zero_point = split_record(records, code_rows, 64)
    assert torch.equal(packed, pack(codes, bits))
    assert torch.equal(read_step_sizes, step_size_bytes) and torch.equal(read_zero_point, zero_point)
    packed[1, 4, 7] ^= 255
    assert records[1, 4 * 64 + 7] == packed[1, 4, 7]


def test_the_last_token_fills_the_last_page():
    x = torch.randn(2, 5, 3)
    pages = fill_pages(x, 4)
    assert pages.shape == (2, 2, 4, 3)
    assert torch.equal(pages.flatten(1, 2)[:, :5], x) and torch.equal(pages[:, 1, 1:], x[:, 4:].expand(2, 3, 3))
    assert fill_pages(x, 5).data_ptr() != x.data_ptr()  # encoders change it in place

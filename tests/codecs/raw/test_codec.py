"""Pages of values in a float type."""

from __future__ import annotations

import pytest
import torch

from pagedvid.codecs.raw.codec import RawCodec
from pagedvid.codecs.raw.spec import read_raw
from pagedvid.codecs.registry import read_codec
from pagedvid.codecs.spec import PageFormat
from pagedvid.errors import NonFiniteError
from tests.codecs.page_reader import decode

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "sim": torch.float32}


@pytest.mark.parametrize(("name", "dtype"), TYPES.items())
@pytest.mark.parametrize(("head_dim", "rows"), [(64, 36), (2, 36), (64, 35), (2, 35), (6, 37)])
@pytest.mark.parametrize("num_tokens", [1, 8, 9, 17, 18, 19, 300])
def test_values_keep_their_type_exactly(num_tokens, head_dim, rows, name, dtype):
    page = PageFormat(head_dim, rows)
    codec = RawCodec(page, read_codec(name))
    x = torch.randn(2, num_tokens, head_dim, generator=torch.Generator().manual_seed(0)) * 1e4
    records = codec.encode(x)
    assert records.shape == (2, read_codec(name).num_pages(page, num_tokens), page.num_bytes)
    assert torch.equal(decode(codec, page, records, num_tokens), x.to(dtype).float())
    assert torch.equal(decode(codec, page, records, num_tokens, torch.bfloat16), x.bfloat16())
    assert codec.mean_square_step_sizes(records, num_tokens) is None


@pytest.mark.parametrize("num_rows", [1, 2])
@pytest.mark.parametrize("name", TYPES)
def test_pages_may_be_anywhere_in_a_pool(name, num_rows):
    """Pages of 70 bytes: every other one is not aligned to float32."""
    page = PageFormat(2, rows=35)
    codec, x = RawCodec(page, read_codec(name)), torch.randn(num_rows, 3, 2)
    pool = torch.zeros(num_rows, 3, page.num_bytes, dtype=torch.uint8)
    pool[:, 1:2] = codec.encode(x)
    assert torch.equal(decode(codec, page, pool[:, 1:2], 3), x.to(TYPES[name]).float())


def test_a_page_is_an_array_of_values_and_zeros():
    x = torch.arange(3 * 4.0).view(1, 3, 4)
    record = RawCodec(PageFormat(4, rows=15), read_codec("fp32")).encode(x)[0, 0]
    assert record.shape == (60,)  # room for 3 tokens of 16 bytes
    assert torch.equal(record[:48].view(torch.float32), x.flatten())
    assert not record[48:].any()


def test_bf16_refuses_what_would_become_infinite():
    x = torch.zeros(2, 3, 8)
    x[1, 0, 0] = 3.4e38  # finite in float32, infinite in bfloat16
    with pytest.raises(NonFiniteError, match="1 too large") as caught:
        RawCodec(PageFormat(8), read_codec("bf16")).encode(x)
    assert caught.value.rows == (1,)


def test_other_names_are_those_of_other_families():
    assert read_raw("int2") is None
    assert read_raw("fp16") is None

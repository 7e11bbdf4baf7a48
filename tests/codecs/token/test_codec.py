"""The quantizer of arXiv 2605.26266: one step size per token and group of channels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pagedvid.codecs.registry import read_codec
from pagedvid.codecs.spec import PageFormat
from pagedvid.codecs.token.codec import TokenCodec
from pagedvid.codecs.token.spec import read_token
from pagedvid.errors import ConfigError
from tests.codecs.page_reader import decode, read_pages


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def round_trip(name: str, x: Tensor) -> Tensor:
    page = PageFormat(x.shape[2])
    codec = TokenCodec(page, read_codec(name))
    return decode(codec, page, codec.encode(x), x.shape[1])


@given(st.floats(-5e4, 5e4), st.floats(-20, 3), st.integers(0, 2**31))
def test_any_offset_and_spread_keep_the_bound(offset, log10_spread, seed):
    x = offset + randn(1, 40, 64, seed=seed) * 10**log10_spread
    groups = x.double().unflatten(-1, (2, 32))
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    missed = (round_trip("token2-g32", x).double() - x.double()).abs().unflatten(-1, (2, 32))
    step_size = (high - low) / 3
    fp16 = 2.0**-10 * (low.abs() + 4 * step_size) + 2.0**-23  # zero point rounded down, step size up
    assert bool((missed <= step_size / 2 + fp16).all())


@pytest.mark.parametrize("value", [0.0, 1.0, -3.5, 65472.0])
def test_constants_that_fp16_holds_are_exact(value):
    x = torch.full((2, 40, 64), value)
    assert torch.equal(round_trip("token2-g64", x), x)


def test_an_outlier_widens_only_its_own_group_of_its_own_token():
    x = randn(1, 150, 128)
    plain = round_trip("token2-g32", x)
    x[0, 7, 40] = 1e4
    changed = round_trip("token2-g32", x) != plain
    assert changed[0, 7, 32:64].any()
    changed[0, 7, 32:64] = False
    assert not changed.any()


@pytest.mark.parametrize(
    ("head_dim", "name", "tokens"),
    [(64, "token2-g64", 115), (128, "token2-g32", 96), (128, "token4-g128", 67), (16, "token8-g16", 28)],
)
def test_a_page_holds_as_many_tokens_as_fit(head_dim, name, tokens):
    page = PageFormat(head_dim)
    assert TokenCodec(page, read_codec(name)).page_tokens == tokens
    assert (
        read_codec(name).token_bytes(page) * tokens
        <= page.num_bytes
        < read_codec(name).token_bytes(page) * (tokens + 1)
    )


def test_unused_bytes_are_zero():
    page = PageFormat(64)
    records = TokenCodec(page, read_codec("token2-g64")).encode(randn(2, 200, 64))
    assert not records[..., 115 * read_codec("token2-g64").token_bytes(page) :].any()


@pytest.mark.parametrize("num_tokens", [1, 115, 300])
def test_step_sizes_of_every_token_and_group(num_tokens):
    page = PageFormat(64)
    codec = TokenCodec(page, read_codec("token2-g16"))
    records = codec.encode(randn(3, num_tokens, 64))
    step_sizes = codec.token_step_sizes(records, num_tokens)
    assert step_sizes.shape == (3, num_tokens, 4) and step_sizes.dtype == torch.float32
    expected = read_pages(records, page, "token2-g16", num_tokens).step_sizes
    np.testing.assert_array_equal(step_sizes.repeat_interleave(16, dim=-1).double().numpy(), expected)


def test_groups_that_do_not_divide_the_head_are_refused():
    with pytest.raises(ConfigError, match="token2-g64 needs a head_dim that is a multiple of 64; it is 96"):
        TokenCodec(PageFormat(96), read_codec("token2-g64")).encode(randn(1, 5, 96))


def test_other_names_are_those_of_other_families():
    assert read_token("int2") is None
    assert read_token("token3-g64") is None
    assert read_token("token2-g48") is None

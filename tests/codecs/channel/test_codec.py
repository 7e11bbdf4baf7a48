"""Step sizes per channel and page: odd channels, padding that changes nothing, and the options of a name."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pagedvid.codecs.channel.codec import ChannelCodec
from pagedvid.codecs.channel.spec import read_channel
from pagedvid.codecs.packing import short_step_sizes
from pagedvid.codecs.registry import read_codec
from pagedvid.codecs.spec import PageFormat
from tests.codecs.page_reader import decode, read_pages

PLAIN = ["int8", "int4", "int2"]
NAMES = [*PLAIN, "int8-s8", "int2-s8"]
"""Codecs whose channels do not depend on each other."""


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def round_trip(name: str, x: Tensor) -> Tensor:
    page = PageFormat(x.shape[2])
    codec = ChannelCodec(page, read_codec(name))
    return decode(codec, page, codec.encode(x), x.shape[1])


def page_step_sizes(name: str, x: Tensor) -> Tensor:
    codec = ChannelCodec(PageFormat(x.shape[2]), read_codec(name))
    return codec.page_step_sizes(codec.encode(x))


def assert_within_half_a_step_size(x: Tensor, name: str) -> None:
    page = PageFormat(x.shape[2])
    codec = ChannelCodec(page, read_codec(name))
    records = codec.encode(x)
    stored, step_sizes, _ = read_pages(records, page, name, x.shape[1])
    exact = x.double().numpy()
    rounding = 4e-7 * (np.abs(exact) + step_sizes * 2**8)  # the codes are computed in float32
    assert (np.abs(stored - exact) <= step_sizes / 2 + rounding + 255 * 1.4e-45).all()
    decoded = decode(codec, page, records, x.shape[1]).double().numpy()
    np.testing.assert_allclose(decoded, stored, rtol=3e-7, atol=4e-7 * float(np.abs(stored).max()))


ODD_CHANNELS = {
    "zero": lambda n: torch.zeros(n),
    "constant": lambda n: torch.full((n,), 1.0),
    "constant that fp16 cannot hold": lambda n: torch.full((n,), 0.1),
    "huge constant": lambda n: torch.full((n,), -65000.0),
    "huge offset, tiny spread": lambda n: 60000.0 + randn(n) * 1e-3,
    "offset, small spread": lambda n: -300.3 + randn(n) * 1e-4,
    "subnormal spread": lambda n: randn(n) * 3e-8,
    "subnormal spread on an offset": lambda n: 0.5 + randn(n) * 3e-8,
    "float32 denormals": lambda n: randn(n) * 1e-42,
    "outlier": lambda n: torch.cat([torch.tensor([1e4]), randn(n)])[:n],
    "full range": lambda n: torch.linspace(-65500, 65500, n),
    "two far values": lambda n: torch.where(torch.arange(n) % 2 == 0, -65472.0, 65472.0),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("num_tokens", [1, 40, 300])
@pytest.mark.parametrize("kind", ODD_CHANNELS)
def test_odd_channels_keep_the_bound_and_disturb_no_other(kind, num_tokens, name):
    x = randn(2, num_tokens, 8)
    before = round_trip(name, x)
    x[1, :, 3] = ODD_CHANNELS[kind](num_tokens)
    assert_within_half_a_step_size(x, name)
    after, others = round_trip(name, x), [c for c in range(8) if c != 3]
    assert torch.equal(before[0], after[0]) and torch.equal(before[1][:, others], after[1][:, others])


channel_values = st.floats(-65000, 65000, width=32)


@given(st.sampled_from(NAMES), st.lists(st.tuples(channel_values, channel_values), min_size=1, max_size=140))
def test_any_finite_values_keep_the_bound(name, tokens):
    assert_within_half_a_step_size(torch.tensor(tokens).view(1, -1, 2), name)


@given(st.sampled_from(NAMES), st.floats(-6e4, 6e4), st.floats(-30, 3), st.integers(0, 2**31))
def test_any_offset_and_spread_keep_the_bound(name, offset, log10_spread, seed):
    assert_within_half_a_step_size(offset + randn(1, 70, 4, seed=seed) * 10**log10_spread, name)


@pytest.mark.parametrize("name", [*NAMES, "int4-pair"])
@pytest.mark.parametrize("value", [0.0, 1.0, -3.5, 1024.0, 65472.0, 2.0**-24])
def test_constants_that_fp16_holds_are_exact_and_have_step_size_zero(value, name):
    x = torch.full((1, 150, 8), value)
    assert not page_step_sizes(name, x).any()
    assert torch.equal(round_trip(name, x), x)


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("num_tokens", [1, 5, 33, 129])
def test_padding_changes_no_step_size(num_tokens, name):
    """A page with few tokens is quantized by these tokens alone, as if they were repeated until it is full."""
    x = randn(2, num_tokens, 8)
    per_page = read_codec(name).page_tokens(PageFormat(8))
    last = x[:, (num_tokens - 1) // per_page * per_page :]
    repeated = last.repeat(1, per_page, 1)[:, :per_page]
    assert torch.equal(page_step_sizes(name, x)[:, -1], page_step_sizes(name, repeated)[:, 0])


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("num_tokens", [1, 128, 300])
def test_encoding_a_decoded_page_again_changes_nothing_by_more_than_a_step_size(num_tokens, name):
    x = randn(2, num_tokens, 64)
    once = round_trip(name, x)
    per_page = read_codec(name).page_tokens(PageFormat(64))
    step_sizes = page_step_sizes(name, x).repeat_interleave(per_page, dim=1)[:, :num_tokens]
    assert ((round_trip(name, once) - once).abs() <= step_sizes * 0.51 + 1e-6).all()


@pytest.mark.parametrize("name", PLAIN)
def test_a_grid_that_fp16_holds_is_reproduced_exactly_by_every_integer_codec(name):
    x = 255.0 * randn(2, 300, 8).gt(0)  # 255 = 3 * 85 = 15 * 17 = 255 * 1
    assert torch.equal(round_trip(name, x), x)


def test_rounding_errors_have_the_mean_square_of_uniform_ones():
    """step_size^2 / 12; of the 64 tokens of a page, the smallest and the largest have no error."""
    x = randn(2, 512, 64)
    error = float((round_trip("int4", x) - x).square().mean())
    expected = float(page_step_sizes("int4", x).double().square().mean() / 12) * 62 / 64
    assert error == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("short", ["", "-s8"])
def test_a_rotary_pair_shares_the_larger_step_size_and_nothing_else(short):
    x = randn(3, 50, 8) * torch.tensor([1.0, 2, 3, 4, 5, 1, 7, 4]) + torch.arange(8)
    alone, shared = page_step_sizes(f"int4{short}", x), page_step_sizes(f"int4-pair{short}", x)
    larger = torch.maximum(alone[..., :4], alone[..., 4:])
    assert torch.equal(shared, torch.cat([larger, larger], dim=-1))
    zero_points = [
        read_pages(ChannelCodec(p := PageFormat(8), read_codec(n)).encode(x), p, n, 50).zero_points
        for n in ("int4", "int4-pair")
    ]
    np.testing.assert_array_equal(*zero_points)


def test_short_step_sizes_are_the_next_above_the_exact_ones():
    x = randn(3, 100, 8)
    exact, short = page_step_sizes("int2", x), page_step_sizes("int2-s8", x)
    assert torch.isin(short, short_step_sizes(torch.device("cpu"))).all()
    assert (short >= exact * (1 - 2**-10)).all() and (short <= exact * 2 ** (1 / 6)).all()


@pytest.mark.parametrize(
    ("name", "tokens"), [("int2", 128), ("int2-pair", 132), ("int2-s8", 132), ("int2-pair-s8", 132), ("int8-s8", 33)]
)
def test_shorter_step_sizes_make_room_for_a_row_of_codes(name, tokens):
    assert ChannelCodec(PageFormat(64), read_codec(name)).page_tokens == tokens


def test_after_rotary_embedding_the_bytes_are_the_same():
    """It is the caller who rotates keys, or does not."""
    x, page = randn(2, 200, 64), PageFormat(64)
    assert torch.equal(
        ChannelCodec(page, read_codec("int2-post")).encode(x), ChannelCodec(page, read_codec("int2")).encode(x)
    )


def test_other_names_are_those_of_other_families():
    assert read_channel("token2-g64") is None
    assert read_channel("int3") is None
    assert read_channel("int2-s8-pair") is None


@pytest.mark.parametrize("name", ["int2", "int4", "int8", "int2-s8", "int4-pair-s8", "int8-s8"])
@pytest.mark.parametrize("size", [1.0, 1e-3, 1e-5, 1e-6, 1e-7, 1e-9])
def test_small_values_err_by_no_more_than_their_step_size_and_the_grid_of_fp16(name, size):
    """An error many times the value would be worse than to store nothing."""
    bits = int(name[3])
    x = size * randn(2, 64, 8).float()
    error = (round_trip(name, x).double() - x.double()).abs().max()
    spread = float(x.max() - x.min()) + 2.0**-24
    assert float(error) <= 1.2 * spread / ((1 << bits) - 1) + 2.0**-24
    assert float(error) <= 1.1 * float(x.abs().max()) + 2.0**-24

"""The paper's quantizer, plain and after a Hadamard rotation."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pagedvid.errors import ConfigError, NonFiniteError
from pagedvid.quant.hadamard import HadamardCodec, hadamard_matrix
from pagedvid.quant.token import TokenCodec

CODECS = [TokenCodec(64, 2, 64), TokenCodec(128, 2, 32), TokenCodec(128, 4, 128), TokenCodec(16, 8, 16)]


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def decode(codec: TokenCodec | HadamardCodec, records: Tensor, num_tokens: int) -> Tensor:
    tokens = codec if isinstance(codec, TokenCodec) else codec.tokens
    out = torch.full((len(records), records.shape[1] * tokens.page_tokens, tokens.head_dim), torch.nan)
    return codec.decode(records, num_tokens, out)


def assert_within_half_a_step(codec: TokenCodec, x: Tensor) -> None:
    records = codec.encode(x)
    assert records.shape == (len(x), -(-x.shape[1] // codec.page_tokens), 36 * codec.head_dim)
    missed = (decode(codec, records, x.shape[1]).double() - x.double()).abs().unflatten(-1, (-1, codec.group))
    groups = x.double().unflatten(-1, (-1, codec.group))
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    step = (high - low) / (2**codec.bits - 1)
    fp16 = 2.0**-10 * (low.abs() + 2**codec.bits * step) + 2.0**-23  # zero rounded down, step rounded up
    assert bool((missed <= step / 2 + fp16).all())


@pytest.mark.parametrize("codec", CODECS, ids=str)
@pytest.mark.parametrize("num_tokens", [1, 31, 115, 116, 300])
def test_every_value_comes_back_within_half_a_step(num_tokens, codec):
    assert_within_half_a_step(codec, 3 * randn(2, num_tokens, codec.head_dim) + 1)


@given(st.floats(-5e4, 5e4), st.floats(-20, 3), st.integers(0, 2**31))
def test_any_offset_and_spread_keep_the_bound(offset, log10_spread, seed):
    assert_within_half_a_step(CODECS[0], offset + randn(1, 40, 64, seed=seed) * 10**log10_spread)


@pytest.mark.parametrize("value", [0.0, 1.0, -3.5, 65472.0])
def test_constants_that_fp16_holds_are_exact(value):
    x = torch.full((2, 40, 64), value)
    assert torch.equal(decode(CODECS[0], CODECS[0].encode(x), 40), x)


def test_an_outlier_widens_only_its_own_group_of_its_own_token():
    codec, x = CODECS[1], randn(1, 50, 128)
    plain = decode(codec, codec.encode(x), 50).clone()
    x[0, 7, 40] = 1e4
    missed = decode(codec, codec.encode(x), 50) != plain
    assert missed[0, 7, 32:64].any()
    missed[0, 7, 32:64] = False
    assert not missed.any()


@pytest.mark.parametrize(("codec", "tokens"), [(CODECS[0], 115), (CODECS[1], 96), (CODECS[2], 67), (CODECS[3], 28)])
def test_a_page_holds_as_many_tokens_as_fit(codec, tokens):
    assert codec.page_tokens == tokens
    assert codec.token_bytes * tokens <= 36 * codec.head_dim < codec.token_bytes * (tokens + 1)


@pytest.mark.parametrize("size", [2, 24, 64, 128])
def test_the_rotation_is_orthonormal_and_symmetric(size):
    matrix = hadamard_matrix(size)
    torch.testing.assert_close(matrix @ matrix, torch.eye(size), atol=1e-6, rtol=0)
    assert torch.equal(matrix, matrix.T)


def test_rotation_tames_an_outlier_channel():
    x = randn(1, 200, 64)
    x[..., 5] *= 20
    plain, rotated = TokenCodec(64, 2, 64), HadamardCodec(TokenCodec(64, 2, 64))
    errors = [float((decode(c, c.encode(x), 200) - x).square().mean()) for c in (plain, rotated)]
    assert errors[1] < 0.5 * errors[0]


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 7e4])
def test_what_cannot_be_stored_is_refused_and_its_row_named(value):
    x = randn(3, 40, 64)
    x[2, 39, 0] = value
    with pytest.raises(NonFiniteError) as caught:
        CODECS[0].encode(x)
    assert caught.value.rows == (2,)


@pytest.mark.parametrize(
    ("bits", "group", "message"), [(3, 64, "bits is 3"), (2, 48, "group is 48"), (2, 2, "group is 2")]
)
def test_settings_that_fit_no_page_are_refused(bits, group, message):
    with pytest.raises(ConfigError, match=message):
        TokenCodec(64, bits, group)

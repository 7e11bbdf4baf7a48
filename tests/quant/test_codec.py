"""Round trips of every codec, with bounds that hold for the numbers really stored in the page."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pagedvid.errors import ConfigError, NonFiniteError
from pagedvid.geometry import page_tokens, pages_for_tokens
from pagedvid.quant.codec import CODECS, get_codec, page_steps
from tests.quant.page_reader import read_quantized

QUANTIZED = ("int8", "int4", "int2")
RAW = {"fp32": torch.float32, "bf16": torch.bfloat16}
AWKWARD_TOKENS = (1, 17, 31, 128, 129, 300, 880)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def decode(codec: str, records: Tensor, num_tokens: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Into a buffer full of NaN, so that whatever is not written shows."""
    padded = records.shape[1] * page_tokens(codec)
    out = torch.full((len(records), padded, records.shape[2] // 36), torch.nan, dtype=dtype)
    return get_codec(codec).decode(records, num_tokens, out)


def assert_within_half_a_step(x: Tensor, codec: str) -> Tensor:
    """Encodes x [R, n, D], checks bound and decoder against the slow reader, returns the records."""
    num_tokens = x.shape[1]
    records = get_codec(codec).encode(x)
    assert records.shape == (len(x), pages_for_tokens(num_tokens, codec), 36 * x.shape[2])
    assert records.dtype == torch.uint8
    stored, steps = read_quantized(records, codec, num_tokens)
    exact = x.double().numpy()
    rounding = 4e-7 * (np.abs(exact) + steps * 2**8)  # the codes are computed in float32
    assert (np.abs(stored - exact) <= steps / 2 + rounding + 1e-44).all()
    decoded = decode(codec, records, num_tokens)
    np.testing.assert_allclose(decoded.double().numpy(), stored, rtol=3e-7, atol=4e-7 * float(np.abs(stored).max()))
    return records


@pytest.mark.parametrize("codec", QUANTIZED)
@pytest.mark.parametrize("head_dim", [2, 64, 128])
@pytest.mark.parametrize("num_tokens", AWKWARD_TOKENS)
def test_every_value_comes_back_within_half_a_step(num_tokens, head_dim, codec):
    assert_within_half_a_step(randn(3, num_tokens, head_dim) * 2, codec)


@pytest.mark.parametrize(("codec", "dtype"), RAW.items())
@pytest.mark.parametrize("num_tokens", AWKWARD_TOKENS)
def test_raw_codecs_keep_their_type_exactly(num_tokens, codec, dtype):
    x = randn(2, num_tokens, 64) * 1e4
    records = get_codec(codec).encode(x)
    assert records.shape == (2, pages_for_tokens(num_tokens, codec), 36 * 64)
    assert torch.equal(decode(codec, records, num_tokens), x.to(dtype).float())
    assert get_codec(codec).mean_square_steps(records, num_tokens) is None


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


@pytest.mark.parametrize("codec", QUANTIZED)
@pytest.mark.parametrize("num_tokens", [1, 40, 300])
@pytest.mark.parametrize("kind", ODD_CHANNELS)
def test_odd_channels_keep_the_bound_and_disturb_no_other(kind, num_tokens, codec):
    x = randn(2, num_tokens, 8)
    plain = get_codec(codec).encode(x)
    x[1, :, 3] = ODD_CHANNELS[kind](num_tokens)
    records = assert_within_half_a_step(x, codec)
    others = [c for c in range(8) if c != 3]
    before, after = decode(codec, plain, num_tokens), decode(codec, records, num_tokens)
    assert torch.equal(before[0], after[0]) and torch.equal(before[1][:, others], after[1][:, others])


@pytest.mark.parametrize("codec", QUANTIZED)
@pytest.mark.parametrize("value", [0.0, 1.0, -3.5, 1024.0, 65472.0, 2.0**-24])
def test_constants_that_fp16_holds_are_exact_and_have_no_step(value, codec):
    x = torch.full((1, 150, 8), value)
    records = get_codec(codec).encode(x)
    assert torch.equal(page_steps(records), torch.zeros(1, records.shape[1], 8))
    assert torch.equal(decode(codec, records, 150), x)


channel_values = st.floats(-65000, 65000, width=32)


@given(st.sampled_from(QUANTIZED), st.lists(st.tuples(channel_values, channel_values), min_size=1, max_size=140))
def test_any_finite_values_keep_the_bound(codec, tokens):
    assert_within_half_a_step(torch.tensor(tokens).view(1, -1, 2), codec)


@given(st.sampled_from(QUANTIZED), st.floats(-6e4, 6e4), st.floats(-30, 3), st.integers(0, 2**31))
def test_any_offset_and_spread_keep_the_bound(codec, offset, log10_spread, seed):
    assert_within_half_a_step(offset + randn(1, 70, 4, seed=seed) * 10**log10_spread, codec)


@pytest.mark.parametrize("codec", QUANTIZED)
@pytest.mark.parametrize("num_tokens", [1, 5, 33, 129])
def test_padding_moves_no_step_and_no_value(num_tokens, codec):
    """A page with few tokens is quantized by these tokens alone: as if they were repeated until it is full."""
    x = randn(2, num_tokens, 8)
    per_page = page_tokens(codec)
    last = x[:, (num_tokens - 1) // per_page * per_page :]
    repeated = last.repeat(1, per_page, 1)[:, :per_page]
    steps = page_steps(get_codec(codec).encode(x))[:, -1]
    assert torch.equal(steps, page_steps(get_codec(codec).encode(repeated))[:, 0])


@pytest.mark.parametrize("codec", CODECS)
def test_only_the_tokens_that_exist_are_returned(codec):
    records = get_codec(codec).encode(randn(2, 19, 8))
    assert decode(codec, records, 19).shape == (2, 19, 8)
    assert torch.isfinite(decode(codec, records, 19)).all()


@pytest.mark.parametrize("codec", CODECS)
def test_rows_do_not_touch_each_other(codec):
    x = randn(4, 150, 8)
    records = get_codec(codec).encode(x)
    for row in range(4):
        assert torch.equal(records[row], get_codec(codec).encode(x[row : row + 1])[0])


@pytest.mark.parametrize("codec", CODECS)
def test_encoding_changes_no_input(codec):
    for num_tokens in (page_tokens(codec), page_tokens(codec) - 1):
        x = randn(1, num_tokens, 8)
        before = x.clone()
        get_codec(codec).encode(x)
        assert torch.equal(x, before)


@pytest.mark.parametrize("codec", CODECS)
def test_bfloat16_input_is_encoded_as_the_same_numbers_in_float32(codec):
    x = randn(2, 50, 8).bfloat16()
    assert torch.equal(get_codec(codec).encode(x), get_codec(codec).encode(x.float()))


@pytest.mark.parametrize("codec", CODECS)
def test_strided_input_is_fine(codec):
    x = randn(50, 3, 8).transpose(0, 1)
    assert torch.equal(get_codec(codec).encode(x), get_codec(codec).encode(x.contiguous()))


@pytest.mark.parametrize("codec", CODECS)
def test_decoding_into_bfloat16_is_close_to_float32(codec):
    """Zero, step and result are each rounded to 8 significant bits: by at most 2**-8 of offset, range and result."""
    x = randn(2, 300, 64) + 5
    records = get_codec(codec).encode(x)
    exact, rounded = decode(codec, records, 300), decode(codec, records, 300, torch.bfloat16)
    assert rounded.dtype == torch.bfloat16
    offset, largest = exact.amin(1, keepdim=True), exact.abs()
    bound = 2**-8 * (offset.abs() + (exact - offset) + largest)
    assert ((rounded.float() - exact).abs() <= 1.01 * bound).all()


@pytest.mark.parametrize("codec", QUANTIZED)
@pytest.mark.parametrize("num_tokens", [1, 128, 300])
def test_encoding_a_decoded_page_again_moves_nothing_by_more_than_a_step(num_tokens, codec):
    x = randn(2, num_tokens, 64)
    records = get_codec(codec).encode(x)
    once = decode(codec, records, num_tokens)
    twice = decode(codec, get_codec(codec).encode(once), num_tokens)
    _, steps = read_quantized(records, codec, num_tokens)
    assert ((twice - once).abs().numpy() <= steps * 0.51 + 1e-6).all()


@pytest.mark.parametrize("codec", QUANTIZED)
def test_a_grid_that_fp16_holds_is_reproduced_exactly_by_every_integer_codec(codec):
    x = 255.0 * randn(2, 300, 8).gt(0)  # 255 = 3 * 85 = 15 * 17 = 255 * 1
    once = get_codec(codec).encode(x)
    assert torch.equal(decode(codec, once, 300), x)
    assert torch.equal(get_codec(codec).encode(decode(codec, once, 300)), once)


@pytest.mark.parametrize("codec", QUANTIZED)
@pytest.mark.parametrize("num_tokens", [1, 128, 129, 300])
def test_mean_square_steps_weighs_pages_by_their_tokens(num_tokens, codec):
    records = get_codec(codec).encode(randn(3, num_tokens, 8))
    _, steps = read_quantized(records, codec, num_tokens)
    mean = get_codec(codec).mean_square_steps(records, num_tokens)
    np.testing.assert_allclose(mean.numpy(), (steps**2).mean(axis=1), rtol=1e-5)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(
    ("value", "message"), [(torch.nan, "1 NaN, 0 infinite and 0 too large"), (-torch.inf, "0 NaN, 1 infinite and 0")]
)
def test_values_that_are_no_numbers_are_refused_and_their_row_named(value, message, codec):
    x = randn(4, 150, 8)
    x[2, 149, 5] = value
    with pytest.raises(NonFiniteError, match=message) as caught:
        get_codec(codec).encode(x)
    assert caught.value.rows == (2,)


@pytest.mark.parametrize("codec", QUANTIZED)
def test_values_beyond_fp16_are_refused_and_counted(codec):
    x = randn(4, 150, 8)
    x[0, 3, 1], x[3, 7, 2], x[3, 8, 2] = 70000.0, -1e9, 65504.0
    with pytest.raises(NonFiniteError, match=r"3 too large values \(limit 6\.55e\+04\)") as caught:
        get_codec(codec).encode(x)
    assert caught.value.rows == (0, 3)


def test_bf16_refuses_what_would_become_infinite():
    x = torch.zeros(2, 3, 8)
    x[1, 0, 0] = 3.4e38  # finite in float32, infinite in bfloat16
    with pytest.raises(NonFiniteError, match="1 too large") as caught:
        get_codec("bf16").encode(x)
    assert caught.value.rows == (1,)


def test_unknown_codec():
    with pytest.raises(ConfigError, match="unknown codec 'int3'; allowed are fp32, bf16, int8, int4, int2"):
        get_codec("int3")


def test_fewer_bits_mean_a_larger_error():
    x = randn(2, 512, 64)
    errors = [float((decode(c, get_codec(c).encode(x), 512) - x).square().mean()) for c in ("bf16", *QUANTIZED)]
    assert errors == sorted(errors)
    # Uniform rounding errors have the mean square step^2 / 12; of 64 tokens, the smallest and the largest have none.
    steps = page_steps(get_codec("int4").encode(x)).double()
    assert errors[2] == pytest.approx(float((steps**2).mean() / 12) * 62 / 64, rel=0.01)


@pytest.mark.parametrize(("first_token", "num_tokens"), [(0, 10), (120, 20), (250, 50), (128, 128), (0, 300)])
def test_mean_square_steps_of_some_of_the_tokens(first_token, num_tokens):
    """A page counts with as many of the tokens as it holds, at int2 128 a page."""
    records = get_codec("int2").encode(torch.randn(2, 300, 8, generator=torch.Generator().manual_seed(0)))
    per_token = page_steps(records).square().repeat_interleave(128, dim=1)[:, first_token : first_token + num_tokens]
    mean = get_codec("int2").mean_square_steps(records, num_tokens, first_token)
    torch.testing.assert_close(mean, per_token.mean(1))

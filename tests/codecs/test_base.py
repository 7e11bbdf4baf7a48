"""Properties of every codec that needs no calibration: the size of records, the error bound, odd input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pagedvid.codecs.base import Codec
from pagedvid.codecs.book import CodecBook
from pagedvid.codecs.packing import round_down_fp16, round_up_fp16
from pagedvid.codecs.registry import read_codec
from pagedvid.codecs.spec import PageFormat
from pagedvid.codecs.token.hadamard import hadamard_matrix
from pagedvid.errors import NonFiniteError
from tests.codecs.page_reader import decode, read_pages

RAW = ["fp32", "bf16"]
OPTIONS = ["", "-pair", "-s8", "-post", "-pair-s8", "-pair-post", "-s8-post", "-pair-s8-post"]
CHANNEL = [f"int{bits}{options}" for bits in (2, 4, 8) for options in OPTIONS]
TOKEN = [
    f"{family}{bits}-g{group}" for family in ("token", "hadamard") for bits in (2, 4, 8) for group in (16, 64, 128)
]
QUANTIZED = CHANNEL + TOKEN
FEW = ["int8", "int4", "int2", "int2-pair", "int4-s8", "int2-pair-s8-post", "token2-g64", "token4-g16", "hadamard2-g32"]
FEW += RAW
"""One of each kind."""


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def codec_of(name: str, page: PageFormat) -> Codec:
    return CodecBook(page, num_kv_heads=3).codec(read_codec(name), "keys", 0, (0, 1, 2))


DATA = {
    "normal": lambda x: 2 * x + 1,
    "zero": torch.zeros_like,
    "constant": lambda x: torch.full_like(x, 3.5),
    "constant that fp16 cannot hold": lambda x: torch.full_like(x, 0.1),
    "one outlier": lambda x: torch.where(torch.arange(x.numel()).view_as(x) == x.numel() // 2, 1e4, x),
    "outlier channel": lambda x: torch.where(torch.arange(x.shape[-1]) == 1, 1e4 * x, x),
    "outlier token": lambda x: torch.where(torch.arange(x.shape[1])[:, None] == x.shape[1] // 2, 1e3 * x, x),
    "constant channels": lambda x: x[:, :1].expand_as(x),
    "constant tokens": lambda x: x[..., :1].expand_as(x),
    "tiny": lambda x: 1e-7 * x,
    "float32 denormals": lambda x: 1e-42 * x,
}


@st.composite
def cases(draw: st.DrawFn, name: str) -> tuple[PageFormat, Tensor]:
    """Pages that fit a codec, and tokens around the ends of a page."""
    group = getattr(read_codec(name), "group", 2)
    head_dim = draw(st.sampled_from([size for size in (2, 16, 64, 128) if size % group == 0]))
    page = PageFormat(head_dim, draw(st.sampled_from([36, 35, 52])))
    full = read_codec(name).page_tokens(page)
    num_tokens = draw(st.sampled_from([1, 2, 17, max(full - 1, 1), full, full + 1, 2 * full, 2 * full + 5]))
    x = randn(draw(st.integers(1, 3)), num_tokens, head_dim, seed=draw(st.integers(0, 99)))
    return page, DATA[draw(st.sampled_from(list(DATA)))](x)


@pytest.mark.parametrize("name", QUANTIZED)
@given(st.data())
def test_every_value_comes_back_within_half_a_stored_step_size(name, data):
    page, x = data.draw(cases(name))
    records = codec_of(name, page).encode(x)
    grid = read_pages(records, page, name, x.shape[1])
    is_rotated = name.startswith("hadamard")
    rotation = hadamard_matrix(page.head_dim).double().numpy() if is_rotated else np.eye(page.head_dim)
    exact = x.double().numpy() @ rotation
    rounding = 4e-7 * (np.abs(exact) + grid.step_sizes * 2**8)  # the codes are computed in float32
    sum_of_products = (
        is_rotated * 2.0**-24 * page.head_dim
    )  # so is the rotation: its error is at most this share of the token's norm
    rounding += sum_of_products * np.linalg.norm(exact, axis=-1, keepdims=True)
    denormal = 255 * 1.4e-45  # a step size below the smallest float32 becomes 0
    assert (np.abs(grid.values - exact) <= grid.step_sizes / 2 + rounding + denormal).all()
    decoded = decode(codec_of(name, page), page, records, x.shape[1]).double().numpy()
    tolerance = 1e-6 * np.abs(grid.values).max() + sum_of_products * np.linalg.norm(grid.values, axis=-1).max()
    np.testing.assert_allclose(decoded, grid.values @ rotation, rtol=3e-7, atol=tolerance)


@given(st.sampled_from(RAW + QUANTIZED), st.data())
def test_records_take_the_bytes_that_the_page_format_says(name, data):
    page, x = data.draw(cases(name))
    records = codec_of(name, page).encode(x)
    assert records.dtype == torch.uint8
    assert records.shape == (len(x), read_codec(name).num_pages(page, x.shape[1]), page.num_bytes)
    out = torch.full((len(x), read_codec(name).padded_tokens(page, x.shape[1]), page.head_dim), torch.nan)
    tokens = codec_of(name, page).decode(records, x.shape[1], out)
    assert tokens.shape == x.shape and tokens.data_ptr() == out.data_ptr()
    assert torch.isfinite(tokens).all()


@given(st.sampled_from(QUANTIZED), st.data())
def test_decoding_into_bfloat16_is_close_to_float32(name, data):
    """Zero point, step size, product and sum are each rounded to 8 significant bits, by at most 2**-8 of themselves."""
    page, x = data.draw(cases(name))
    records = codec_of(name, page).encode(x)
    grid = read_pages(records, page, name, x.shape[1])
    full, rounded = (
        decode(codec_of(name, page), page, records, x.shape[1], t) for t in (torch.float32, torch.bfloat16)
    )
    assert rounded.dtype == torch.bfloat16
    missed = (rounded.double() - full.double()).abs().numpy()
    bound = 2**-8 * (np.abs(grid.zero_points) + 2 * np.abs(grid.values - grid.zero_points) + np.abs(grid.values))
    if not name.startswith("int"):  # these only round their result
        bound = 2**-8 * full.double().abs().numpy()
    assert (missed <= 1.02 * bound + 1e-37).all()


@given(st.sampled_from(QUANTIZED), st.data())
def test_mean_square_step_sizes_is_the_mean_over_the_tokens_asked_for(name, data):
    page, x = data.draw(cases(name))
    first = data.draw(st.integers(0, x.shape[1] - 1))
    count = data.draw(st.integers(1, x.shape[1] - first))
    records = codec_of(name, page).encode(x)
    step_sizes = read_pages(records, page, name, x.shape[1]).step_sizes[:, first : first + count]
    mean = codec_of(name, page).mean_square_step_sizes(records, count, first)
    assert mean.dtype == torch.float32
    np.testing.assert_allclose(mean.numpy(), (step_sizes**2).mean(axis=1), rtol=2e-5, atol=1e-40)


@pytest.mark.parametrize("name", FEW)
def test_rows_do_not_touch_each_other(name):
    page = PageFormat(64)
    x = randn(4, 150, 64)
    records = codec_of(name, page).encode(x)
    for row in range(4):
        assert torch.equal(records[row], codec_of(name, page).encode(x[row : row + 1])[0])


@pytest.mark.parametrize("name", FEW)
def test_encoding_changes_no_input(name):
    page = PageFormat(64)
    for num_tokens in (read_codec(name).page_tokens(page), read_codec(name).page_tokens(page) - 1):
        x = randn(1, num_tokens, 64)
        before = x.clone()
        codec_of(name, page).encode(x)
        assert torch.equal(x, before)


@pytest.mark.parametrize("name", FEW)
def test_bfloat16_input_is_encoded_as_the_same_numbers_in_float32(name):
    x, codec = randn(2, 50, 64).bfloat16(), codec_of(name, PageFormat(64))
    assert torch.equal(codec.encode(x), codec.encode(x.float()))


@pytest.mark.parametrize("name", FEW)
def test_strided_input_is_fine(name):
    x, codec = randn(50, 3, 64).transpose(0, 1), codec_of(name, PageFormat(64))
    assert torch.equal(codec.encode(x), codec.encode(x.contiguous()))


@pytest.mark.parametrize("name", FEW)
def test_strided_records_and_buffers_are_fine(name):
    """Records are rows of a pool, and the buffer may be part of a larger one."""
    page = PageFormat(64)
    x, codec = randn(2, 300, 64), codec_of(name, page)
    records = codec.encode(x)
    pool = torch.zeros(2, records.shape[1] + 3, page.num_bytes, dtype=torch.uint8)
    pool[:, 2:-1] = records
    buffer = torch.full((2, read_codec(name).padded_tokens(page, 300) + 10, 64), torch.nan)
    tokens = codec.decode(pool[:, 2:-1], 300, buffer[:, 5:-5])
    assert torch.equal(tokens, decode(codec, page, records, 300))
    assert buffer[:, :5].isnan().all() and buffer[:, -5:].isnan().all()


@pytest.mark.parametrize("name", FEW)
@pytest.mark.parametrize(
    ("value", "message"), [(torch.nan, "1 NaN, 0 infinite and 0 too large"), (-torch.inf, "0 NaN, 1 infinite and 0")]
)
def test_nan_and_infinity_are_refused_and_their_row_named(value, message, name):
    x = randn(4, 150, 64)
    x[2, 149, 5] = value
    with pytest.raises(NonFiniteError, match=message) as caught:
        codec_of(name, PageFormat(64)).encode(x)
    assert caught.value.rows == (2,)


@pytest.mark.parametrize("name", [name for name in FEW if name not in RAW and not name.startswith("hadamard")])
def test_values_beyond_fp16_are_refused_and_counted(name):
    x = randn(4, 150, 64)
    x[0, 3, 1], x[3, 7, 2], x[3, 8, 2] = 70000.0, -1e9, 65504.0
    with pytest.raises(NonFiniteError, match=r"3 too large values \(limit 6\.55e\+04\)") as caught:
        codec_of(name, PageFormat(64)).encode(x)
    assert caught.value.rows == (0, 3)


@pytest.mark.parametrize("names", [("bf16", "int8", "int4", "int2"), ("token8-g64", "token4-g64", "token2-g64")])
def test_fewer_bits_mean_a_larger_error(names):
    page, x = PageFormat(64), randn(2, 512, 64)
    decoded = [decode(codec_of(name, page), page, codec_of(name, page).encode(x), 512) for name in names]
    errors = [float((each - x).square().mean()) for each in decoded]
    assert errors == sorted(errors)


@pytest.mark.parametrize("name", RAW + QUANTIZED)
def test_the_properties_of_a_codec_are_those_of_its_name(name):
    codec = codec_of(name, PageFormat(128))
    assert codec.name == name
    assert codec.spec.stores_rotated == (name.endswith("-post") or name.startswith(("token", "hadamard")))
    assert (codec.axes is not None) == name.startswith("hadamard")


@given(st.floats(-65504, 65504, width=32))
def test_rounding_to_fp16_goes_in_the_stated_direction_and_no_further(value):
    x = torch.tensor(value)
    down, up = round_down_fp16(x), round_up_fp16(x)
    assert float(down) <= value <= float(up)
    assert float(up) - float(down) <= max(abs(value) * 2**-10, 2.0**-24)
    assert (float(down) == float(up)) == (float(x.half()) == value)

"""The transform codec: round trips within a stated bound, bytes as stated, odd input, and rows that do not touch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pagedvid.codecs.base import make_codec
from pagedvid.codecs.channel.codec import ChannelCodec
from pagedvid.codecs.klt.codec import KltCodec
from pagedvid.codecs.klt.levels import POSITIVE_LEVELS
from pagedvid.codecs.registry import read_codec
from pagedvid.codecs.spec import PageFormat
from pagedvid.errors import ConfigError, NonFiniteError, ShapeError
from tests.codecs.klt.scenes import FRAME_TOKENS, HEAD_DIM, SPAN_TOKENS, codec, decode, draw, page, tables

NUM_TOKENS = (1, 9, 17, 39, 40, 41, 95, 400)


def coefficients(codec: KltCodec, x_RnD: Tensor) -> Tensor:
    """Coded coefficients of every block, float64 [R, blocks, K], directly from the definition."""
    coding = codec.coding
    y = (x_RnD - coding.mean_h1D).double() @ coding.analysis_hDD.double()
    blocks = coding.cosines_FF.double() @ y[:, codec.layout.tokens(x_RnD.shape[1])]
    order_hK = coding.rank_hN.argsort(dim=-1)[:, : coding.num_coded]
    return blocks.flatten(-2).gather(-1, order_hK[:, None].expand(-1, blocks.shape[1], -1))


def by_direction(codec: KltCodec, x_hK: Tensor, reduce: str) -> Tensor:
    direction = codec.coding.direction_h1K[:, 0]
    none = torch.zeros(len(x_hK), HEAD_DIM, dtype=torch.float64)
    return none.scatter_reduce_(-1, direction, x_hK.double(), reduce)


def bound_of_unclipped(codec: KltCodec, x_RnD: Tensor) -> Tensor:
    """[R, D]: the largest squared error along each direction, summed over the chunk, if no coefficient is clipped and
    each is off its level by half of the widest gap (scales may be rounded up by a quarter of an octave)."""
    coding, coded = codec.coding, coefficients(codec, x_RnD)
    deviation_hK = coding.deviation_h1K[:, 0].double()
    gaps = {
        width: torch.tensor(levels).diff(prepend=torch.tensor([-levels[0]])).max()
        for width, levels in POSITIVE_LEVELS.items()
    }
    gap_K = torch.cat([gaps[width].repeat(count) for width, count in coding.segments.items()])
    scale = by_direction(codec, (coded.abs() / (deviation_hK[:, None] * coding.reach_K)).amax(1), "amax")
    scale = (scale * 2**0.25).clamp(min=2.0**-32)
    each = (scale.gather(-1, coding.direction_h1K[:, 0]) * deviation_hK * gap_K / 2).square() * coded.shape[1]
    return by_direction(codec, each, "sum")


def assert_within_bound(codec: KltCodec, x_RnD: Tensor) -> None:
    """Encodes and checks every direction's error against the bound."""
    num_tokens = x_RnD.shape[1]
    records = codec.encode(x_RnD)
    decoded = decode(codec, records, num_tokens)
    assert decoded.shape == x_RnD.shape and bool(torch.isfinite(decoded).all())
    exact = coefficients(codec, x_RnD)
    error = by_direction(codec, (coefficients(codec, decoded) - exact).square().sum(1), "sum")
    rounding = 1e-9 * (exact.square().sum() + x_RnD.double().square().sum())  # transforms are in float32
    assert bool((error <= bound_of_unclipped(codec, x_RnD) + rounding + 1e-12).all())


@pytest.mark.parametrize("kind", ["keys", "values"])
@pytest.mark.parametrize("num_tokens", NUM_TOKENS)
@pytest.mark.parametrize("page_blocks", [3, 8, 10])
def test_coded_directions_come_back_within_what_unclipped_rounding_allows(page_blocks, num_tokens, kind):
    tried, x = codec("klt2", kind, page_blocks), draw(9, num_frames=40).k_CHTD[0][:, :num_tokens]
    if num_tokens % SPAN_TOKENS == 0:  # decoded blocks are comparable if none was filled up
        assert_within_bound(tried, x)
    else:
        decoded = decode(tried, tried.encode(x), num_tokens)
        assert float((decoded - x).norm() / (x - x.mean(1, keepdim=True)).norm().clamp(min=1.0)) < 0.5


@pytest.mark.parametrize("name", ["klt0.5", "klt1", "klt1.5", "klt2", "klt2.25", "klt4", "klt8"])
@pytest.mark.parametrize("rows", [9, 18, 36])
@pytest.mark.parametrize("num_tokens", [1, 40, 95, 400])
def test_the_bits_of_the_name_are_honoured_to_the_byte(num_tokens, rows, name):
    format_ = PageFormat(HEAD_DIM, rows, FRAME_TOKENS, 4)
    tried = make_codec(read_codec(name), format_, tables("values"))
    records = tried.encode(draw(9, num_frames=40).v_CHTD[0][:, :num_tokens])
    assert records.dtype == torch.uint8
    assert records.shape == (2, read_codec(name).num_pages(format_, num_tokens), rows * HEAD_DIM)
    used = sum(width * count for width, count in tried.coding.segments.items())
    allowed = read_codec(name).bits_per_block(format_)
    assert used <= allowed and (used > allowed - 32 or tried.coding.segments == {8: 4 * HEAD_DIM})
    assert read_codec(name).page_blocks(format_) * used / 8 + HEAD_DIM <= rows * HEAD_DIM
    tokens = read_codec(name).page_tokens(format_)
    assert (
        8 * rows / tokens <= float(name[3:]) < 8 * rows / max(tokens - 4, 1e-9)
    )  # one block of 4 tokens fewer would exceed the bits


def test_more_bits_mean_less_error():
    x = draw(9).v_CHTD[0]
    errors = []
    for name in ("klt0.75", "klt1", "klt2", "klt4", "klt8"):
        tried = codec(name, "values", 10)
        errors.append(float((decode(tried, tried.encode(x), 40) - x).norm()))
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.2 * errors[0]


@pytest.mark.parametrize("kind", ["keys", "values"])
def test_it_beats_int2_on_what_it_was_calibrated_for(kind):
    x = draw(9).k_CHTD[0] if kind == "keys" else draw(9).v_CHTD[0]
    plain = ChannelCodec(PageFormat(HEAD_DIM), read_codec("int2"))
    records = plain.encode(x)
    stored = plain.decode(records, 40, torch.empty(2, records.shape[1] * 128, HEAD_DIM))
    tried = codec("klt1.5", kind)
    assert float((decode(tried, tried.encode(x), 40) - x).norm()) < 0.7 * float((stored - x).norm())


ODD = {
    "zero": lambda x: torch.zeros_like(x),
    "constant": lambda x: torch.full_like(x, -3.5),
    "one outlier": lambda x: x.index_put((torch.tensor(0), torch.tensor(7), torch.tensor(3)), torch.tensor(1e4)),
    "outlier channel": lambda x: x * torch.where(torch.arange(HEAD_DIM) == 5, 1000.0, 1.0),
    "huge": lambda x: x * 1e4,
    "tiny": lambda x: x * 1e-20,
    "alternating signs": lambda x: x * (-1.0) ** torch.arange(x.shape[1])[:, None],
}


@pytest.mark.parametrize("kind", ODD)
def test_odd_input_keeps_the_bound(kind):
    assert_within_bound(codec(), ODD[kind](draw(9).k_CHTD[0]))


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("num_tokens", [1, 17, 39])
def test_odd_input_of_odd_length_does_not_explode(num_tokens, kind):
    x = ODD[kind](draw(9).k_CHTD[0])[:, :num_tokens]
    decoded = decode(codec(), codec().encode(x), num_tokens)
    assert bool(torch.isfinite(decoded).all())
    assert float(decoded.abs().max()) <= 4 * max(1.0, float(x.abs().max()))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.floats(-20, 4), st.floats(-4, 4))
def test_any_spread_and_offset_keep_the_bound(seed, log10_spread, log10_offset):
    x = torch.randn(2, 80, HEAD_DIM, generator=torch.Generator().manual_seed(seed))
    assert_within_bound(codec(), (x * 10**log10_spread + 10**log10_offset).clamp(-6e4, 6e4))


def test_what_the_calibration_expects_is_coded_best():
    tried, seen = codec(), draw(9).k_CHTD[0]
    other = torch.randn(seen.shape, generator=torch.Generator().manual_seed(0)) * seen.std() + seen.mean()
    errors = [float((decode(tried, tried.encode(x), 40) - x).norm() / x.std()) for x in (seen, other)]
    assert errors[0] < 0.5 * errors[1]


def test_rows_do_not_touch_each_other_and_chunks_may_be_stacked():
    tried, x = codec(), torch.cat([draw(seed).k_CHTD[0] for seed in (9, 10, 11)])
    together = tried.encode(x)
    apart = torch.cat([tried.encode(part) for part in x.split(2)])
    assert torch.equal(together, apart)
    decoded = torch.cat([decode(tried, part, 40) for part in apart.split(2)])
    torch.testing.assert_close(decode(tried, together, 40), decoded, rtol=1e-5, atol=1e-6)
    second = codec(heads=(1,))
    assert torch.equal(second.encode(x[1::2]), apart[1::2])
    torch.testing.assert_close(decode(second, apart[1::2], 40), decoded[1::2], rtol=1e-5, atol=1e-6)


def test_pages_do_not_touch_each_other():
    tried, x = codec(page_blocks=5), draw(9).k_CHTD[0]
    changed = x.clone()
    changed[:, tried.layout.tokens(40)[5:].flatten()] *= 2
    before, after = tried.encode(x), tried.encode(changed)
    assert before.shape[1] == 2
    assert torch.equal(before[:, 0], after[:, 0]) and not torch.equal(before[:, 1], after[:, 1])


def test_many_pages_are_coded_as_single_ones():
    tried, x = codec(page_blocks=FRAME_TOKENS), draw(9, num_frames=400).k_CHTD[0]
    records = tried.encode(x)
    assert records.shape[1] == 100
    for number in (0, 31, 32, 99):  # around the first split, too
        alone = tried.encode(x[:, SPAN_TOKENS * number : SPAN_TOKENS * (number + 1)])
        assert torch.equal(alone[:, 0], records[:, number])


def test_encoding_is_deterministic_changes_no_input_and_takes_bfloat16():
    x = draw(9).k_CHTD[0].bfloat16()
    before = x.clone()
    assert torch.equal(codec().encode(x), codec().encode(x.float()))
    assert torch.equal(x, before)


@pytest.mark.parametrize("num_tokens", [1, 40, 95])
def test_decoding_into_bfloat16_rounds_once(num_tokens):
    x = draw(9, num_frames=10).k_CHTD[0][:, :num_tokens]
    records = codec().encode(x)
    rounded = decode(codec(), records, num_tokens, torch.bfloat16)
    assert rounded.dtype == torch.bfloat16
    assert torch.equal(rounded, decode(codec(), records, num_tokens).bfloat16())


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 7e4])
def test_what_cannot_be_stored_is_refused_and_its_row_named(value):
    x = draw(9).k_CHTD[0].clone()
    x[1, 39, 5] = value
    with pytest.raises(NonFiniteError) as caught:
        codec().encode(x)
    assert caught.value.rows == (1,)


def test_rows_without_tables_are_refused():
    with pytest.raises(
        ShapeError, match=r"3 rows of 16; klt2 is for 16 channels or pages of .* multiple of its 2 heads"
    ):
        codec().encode(torch.zeros(3, 40, HEAD_DIM))


@pytest.mark.parametrize(
    "format_",
    [PageFormat(32, 36, FRAME_TOKENS, 4), PageFormat(HEAD_DIM, 36, 11, 4), PageFormat(HEAD_DIM, 36, FRAME_TOKENS, 2)],
)
def test_tables_of_a_model_of_another_shape_are_refused(format_):
    with pytest.raises(ConfigError, match=r"have .*\(16, 10, 4\); the cache has .*pagedvid calibrate"):
        make_codec(read_codec("klt2"), format_, tables())


def test_pages_that_leave_no_bits_are_refused():
    with pytest.raises(ConfigError, match="raise page_rows"):
        make_codec(read_codec("klt0.5"), PageFormat(HEAD_DIM, 2, FRAME_TOKENS, 1), _still_tables())


def _still_tables():
    from pagedvid.calibration.fit import calibrate
    from pagedvid.codecs.klt.blocks import BlockLayout

    return calibrate([[draw(0)]], "keys", BlockLayout(FRAME_TOKENS, 1))[0]


def test_there_are_no_step_sizes():
    tried = codec()
    assert tried.mean_square_step_sizes(tried.encode(draw(9).k_CHTD[0]), 40) is None
    assert tried.axes is None and not tried.spec.stores_rotated and tried.name == "klt2"
    assert tried.spec.page_blocks(page("klt2")) == 8

"""The transform codec: round trips within a stated bound, bytes as stated, odd input, and what it does to log Z."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pagedvid.errors import ConfigError, NonFiniteError, ShapeError
from pagedvid.quant.allocation import widths_by_rank
from pagedvid.quant.klt import KltCodec
from pagedvid.quant.klt_tables import KltTables, bits_per_block, gaussian_distortion
from tests.quant.klt_scenes import FRAME_TOKENS, HEAD_DIM, codec, decode, draw

NUM_TOKENS = (1, 9, 10, 39, 40, 41, 95, 400)


def coefficients(codec: KltCodec, x_RnD: Tensor) -> Tensor:
    """Ranked coefficients of every block in float64, [R, blocks, N], straight from the definition."""
    tables = codec.tables
    y = (x_RnD - tables.mean_hD[:, None]).double() @ tables.analysis_hDD.double()
    blocks = tables.cosines_FF.double() @ y[:, tables.layout.tokens(x_RnD.shape[1])]
    ranked = blocks.flatten(-2)
    return ranked.gather(-1, tables.order_hN[:, None].expand(-1, ranked.shape[1], -1))


def bound_of_unclipped(codec: KltCodec, x_RnD: Tensor) -> Tensor:
    """[R, D]: most squared error along each direction, summed over the chunk, if no coefficient were clipped and every
    one were half of its widest gap away from its level (scales have a quarter of an octave to round up in)."""
    tables = codec.tables
    coded = coefficients(codec, x_RnD)[..., : tables.num_coded]
    widths = widths_by_rank(tables.segments, tables.num_coded).tolist()
    gap = torch.tensor([float(tables.levels[width].diff().max()) for width in widths], dtype=torch.float64)
    direction = tables.order_hN[:, : tables.num_coded] % tables.head_dim
    reach = (coded.abs() / (tables.coded_deviation_hK[:, None] * tables.reach_K)).amax(1)
    scale = torch.zeros(reach.shape[0], tables.head_dim, dtype=torch.float64).scatter_reduce_(
        -1, direction, reach, "amax"
    )
    scale = (scale * 2**0.25).clamp(min=2.0**-32)
    each = (scale.gather(-1, direction) * tables.coded_deviation_hK * gap / 2).square() * coded.shape[1]
    return torch.zeros_like(scale).scatter_add_(-1, direction, each)


def assert_within_bound(codec: KltCodec, x_RnD: Tensor) -> Tensor:
    """Encodes, checks every direction's error against the bound, returns the records."""
    records = codec.encode(x_RnD)
    tables, num_tokens = codec.tables, x_RnD.shape[1]
    assert records.dtype == torch.uint8
    assert records.shape == (len(x_RnD), codec.num_pages(num_tokens), tables.page_rows * tables.head_dim)
    decoded = decode(codec, records, num_tokens)
    assert decoded.shape == x_RnD.shape and bool(torch.isfinite(decoded).all())
    exact = coefficients(codec, x_RnD)
    missed = (coefficients(codec, decoded) - exact)[..., : tables.num_coded].square().sum(1)
    direction = tables.order_hN[:, : tables.num_coded] % tables.head_dim
    error = torch.zeros(len(x_RnD), tables.head_dim, dtype=torch.float64).scatter_add_(-1, direction, missed)
    rounding = 1e-9 * (exact.square().sum() + x_RnD.double().square().sum())  # transforms are in float32
    assert bool((error <= bound_of_unclipped(codec, x_RnD) + rounding + 1e-12).all())
    return records


@pytest.mark.parametrize("kind", ["keys", "values"])
@pytest.mark.parametrize("num_tokens", NUM_TOKENS)
def test_coded_directions_come_back_within_what_unclipped_rounding_allows(num_tokens, kind):
    x = draw(9, num_frames=40).k_CHTD[0][:, :num_tokens]
    if num_tokens % (4 * FRAME_TOKENS) == 0:  # decoded blocks are comparable when none was filled up
        assert_within_bound(codec(kind), x)
    else:
        decoded = decode(codec(kind), codec(kind).encode(x), num_tokens)
        assert float((decoded - x).norm() / (x - x.mean(1, keepdim=True)).norm().clamp(min=1.0)) < 0.5


@pytest.mark.parametrize("page_blocks", [1, 3, 8, 16])
@pytest.mark.parametrize("page_rows", [9, 18, 36])
def test_codes_and_scales_fill_the_page_but_for_less_than_a_block_of_eight_bits(page_rows, page_blocks):
    tables = codec("values", page_blocks, page_rows=page_rows).tables
    used = sum(width * count for width, count in tables.segments.items())
    allowed = bits_per_block(HEAD_DIM, page_blocks, page_rows)
    assert used <= allowed and (used > allowed - 32 or tables.segments[8] == 4 * HEAD_DIM)
    assert page_blocks * used / 8 + HEAD_DIM <= page_rows * HEAD_DIM
    records = KltCodec(tables).encode(draw(9).v_CHTD[0])
    assert records.numel() == 2 * -(-FRAME_TOKENS // page_blocks) * page_rows * HEAD_DIM


def test_more_bits_mean_less_error():
    x = draw(9).v_CHTD[0]
    errors = []
    for page_rows in (6, 9, 18, 36, 72):
        tried = codec("values", 10, page_rows=page_rows)
        errors.append(float((decode(tried, tried.encode(x), 40) - x).norm()))
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.2 * errors[0]


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


@settings(max_examples=30)
@given(st.integers(0, 2**31), st.floats(-20, 4), st.floats(-4, 4))
def test_any_spread_and_offset_keep_the_bound(seed, log10_spread, log10_offset):
    noise = torch.randn(2, 80, HEAD_DIM, generator=torch.Generator().manual_seed(seed))
    assert_within_bound(codec(), (noise * 10**log10_spread + 10**log10_offset).clamp(-6e4, 6e4))


def test_what_the_calibration_expects_is_coded_best():
    tried, seen = codec(), draw(9).k_CHTD[0]
    other = torch.randn(seen.shape, generator=torch.Generator().manual_seed(0)) * seen.std() + seen.mean()
    errors = [float((decode(tried, tried.encode(x), 40) - x).norm() / x.std()) for x in (seen, other)]
    assert errors[0] < 0.5 * errors[1]


def test_rows_do_not_touch_each_other_and_chunks_may_be_stacked():
    tried, x = codec(), torch.cat([draw(9).k_CHTD[0], draw(10).k_CHTD[0]])
    together = KltCodec(tried.tables.repeat(2)).encode(x)
    apart = torch.cat([tried.encode(x[:2]), tried.encode(x[2:])])
    assert torch.equal(together, apart)
    second = KltCodec(tried.tables.heads(slice(1, 2)))
    assert torch.equal(second.encode(x[1:2]), apart[1:2])


def test_pages_do_not_touch_each_other():
    tried, x = codec(page_blocks=5), draw(9).k_CHTD[0]
    changed = x.clone()
    changed[:, tried.tables.layout.tokens(40)[5:].flatten()] *= 2
    before, after = tried.encode(x), tried.encode(changed)
    assert before.shape[1] == 2
    assert torch.equal(before[:, 0], after[:, 0]) and not torch.equal(before[:, 1], after[:, 1])


def test_encoding_changes_no_input_and_takes_bfloat16():
    x = draw(9).k_CHTD[0].bfloat16()
    before = x.clone()
    assert torch.equal(codec().encode(x), codec().encode(x.float()))
    assert torch.equal(x, before)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 7e4])
def test_what_cannot_be_stored_is_refused_and_its_row_named(value):
    x = draw(9).k_CHTD[0].clone()
    x[1, 39, 5] = value
    with pytest.raises(NonFiniteError) as caught:
        codec().encode(x)
    assert caught.value.rows == (1,)


def test_rows_without_tables_are_refused():
    with pytest.raises(ShapeError, match="3 rows of 16 channels; these tables are for 2 rows of 16"):
        codec().encode(torch.zeros(3, 40, HEAD_DIM))


def test_tables_that_do_not_fit_into_a_page_are_refused():
    tables = codec().tables
    with pytest.raises(ConfigError, match="the page has"):
        KltTables(**{**{name: getattr(tables, name) for name in tables.__dataclass_fields__}, "page_blocks": 64})


@pytest.mark.parametrize(("num_levels", "expected"), [(2, 0.3634), (4, 0.1175), (16, 0.00950)])
def test_gaussian_distortion_is_that_of_max(num_levels, expected):
    from pagedvid.quant.allocation import lloyd_max

    levels = lloyd_max(torch.special.ndtri((torch.arange(100_000) + 0.5) / 100_000), num_levels)
    assert gaussian_distortion(levels) == pytest.approx(expected, abs=1e-3)

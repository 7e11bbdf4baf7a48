"""Writing klt pages, against the codec.

Rounding differs in the last bits, so that a number near the edge between two levels may get the other one; and the
codec looks levels of 4 bits up in cells. So codes are compared one by one; errors are compared where coefficients are
nothing but rounding errors.
"""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from pagedvid.codecs.klt.codec import KltCodec
from pagedvid.codecs.klt.kernels.layout import KltLayout
from pagedvid.codecs.klt.kernels.pages import encode_klt
from pagedvid.codecs.packing import WIDTHS
from pagedvid.codecs.registry import read_codec
from pagedvid.errors import ShapeError
from tests.codecs.klt.kernels.scenes import klt_codec, klt_tokens, random_pool, scattered_pages
from tests.devices import DEVICE

CASES = (
    ("klt0.5", {"num_frames": 3, "rows": 5}, 90),
    ("klt1.5", {"num_frames": 3, "rows": 6, "head_dim": 64}, 60),
    ("klt3", {"num_frames": 1, "rows": 7, "num_heads": 3}, 50),
    ("klt5", {"num_frames": 4, "rows": 11}, 80),
    ("klt2", {"num_frames": 5, "rows": 9, "tokens_per_frame": 7}, 70),
)
"""Names, shapes, and tokens that fill their blocks; no page has a multiple of 8 blocks but those of klt0.5."""
MOST_DIFFERENT = {8: 0.001, 4: 0.01, 2: 0.001, 1: 0.001}
"""Largest share of codes by width that may differ; one always may, since some cases have only 256 codes of a width, and
sums are taken in another order. A cell of the codec is 1/128 wide, and an edge can be anywhere in it."""


def written(codec: KltCodec, x_nHD: Tensor) -> Tensor:
    """Records [H, P, B] that the kernels make; all else in the pool must stay as it was."""
    records = random_pool(codec, 60)
    before = records.clone()
    pages = scattered_pages(codec, len(x_nHD), records)[0]
    assert not encode_klt(x_nHD, records, KltLayout.of(codec.page, codec.coding, DEVICE), pages).any()
    result = records[pages.long()]
    before[pages.long()] = result
    assert torch.equal(before, records)
    return result


def codes(codec: KltCodec, records_HPB: Tensor) -> dict[int, Tensor]:
    """Codes by width, int64 [H, P, K, b]."""
    parts, first, num_blocks = {}, 0, len(codec.coding.blocks)
    for width, count in codec.coding.segments.items():
        end = first + count * width * num_blocks // 8
        fields = [(records_HPB[..., first:end].long() >> shift) & ((1 << width) - 1) for shift in range(0, 8, width)]
        parts[width] = torch.stack(fields, dim=-1).flatten(-2).unflatten(-1, (count, num_blocks))
        first = end
    assert not records_HPB[..., first : -codec.page.head_dim].any()  # unused
    return parts


def errors(codec: KltCodec, x_HnD: Tensor, records_HPB: Tensor) -> Tensor:
    """Root of the summed squares by head [H], in the metric of the analysis and including the tokens that fill up
    blocks, so that the signs of rounding errors do not matter."""
    layout, coding = codec.layout, codec.coding
    tokens_gSF = layout.tokens(x_HnD.shape[1]).unflatten(0, (-1, layout.tokens_per_frame))
    filled_HnD = x_HnD[:, tokens_gSF.mT.flatten().to(DEVICE)]
    out = torch.full(
        (len(x_HnD), read_codec(codec.name).padded_tokens(codec.page, filled_HnD.shape[1]), x_HnD.shape[2]), torch.nan
    )
    decoded_HnD = codec.decode(records_HPB, filled_HnD.shape[1], out)
    missed = (decoded_HnD - filled_HnD) @ coding.analysis_hDD.to(DEVICE)
    return missed.flatten(1).norm(dim=1)


def assert_errs_no_more(codec: KltCodec, x_nHD: Tensor) -> None:
    """Than the codec does."""
    x_HnD = x_nHD.float().transpose(0, 1)
    error_H = errors(codec, x_HnD, written(codec, x_nHD))
    assert (error_H <= 1.001 * errors(codec, x_HnD, codec.encode(x_HnD)) + 1e-5).all()


@pytest.mark.parametrize(("name", "shape", "num_tokens"), CASES, ids=[case[0] for case in CASES])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_codes_are_those_of_the_codec(name: str, shape: Mapping[str, int], num_tokens: int, dtype: torch.dtype) -> None:
    codec = klt_codec(name, **shape)
    x_nHD = klt_tokens(codec, num_tokens).transpose(0, 1).to(dtype)
    records, expected = written(codec, x_nHD), codec.encode(x_nHD.float().transpose(0, 1))
    same_scale = (records == expected)[..., -codec.page.head_dim :]
    assert same_scale.float().mean() > 0.995
    direction = codec.coding.direction_h1K.to(DEVICE).expand(*records.shape[:2], -1)
    same_parts = same_scale.gather(-1, direction).split(list(codec.coding.segments.values()), dim=-1)
    pairs = (codes(codec, records), codes(codec, expected))
    for width, same in zip(codec.coding.segments, same_parts, strict=True):
        apart = (pairs[0][width] - pairs[1][width]).abs()[same]
        assert apart.max() <= 1
        assert (apart > 0).sum() <= max(1.0, MOST_DIFFERENT[width] * apart.numel()), width


def test_all_widths_are_tested() -> None:
    assert {width for name, shape, _ in CASES for width in klt_codec(name, **shape).coding.segments} == set(WIDTHS)


@pytest.mark.parametrize(("name", "shape", "_"), CASES, ids=[case[0] for case in CASES])
@pytest.mark.parametrize("num_tokens", [1, 4, 17, 83])
def test_chunks_that_do_not_fill_their_blocks(name: str, shape: Mapping[str, int], _: int, num_tokens: int) -> None:
    codec = klt_codec(name, **shape)
    assert_errs_no_more(codec, klt_tokens(codec, num_tokens).transpose(0, 1))


def test_pages_of_a_model() -> None:
    """24 rows of 128 channels: 43 blocks of 3 frames, two pages, the second not full."""
    codec = klt_codec("klt1.5", 128, 1, rows=24, tokens_per_frame=60, num_frames=3)
    assert_errs_no_more(codec, klt_tokens(codec, 175).transpose(0, 1).bfloat16())


@pytest.mark.parametrize("name", ["klt1.5", "klt5"])
def test_outliers_zeros_and_constants(name: str) -> None:
    """Scales are chosen for the coefficients: they cover the largest where that is worth it."""
    codec = klt_codec(name, rows=9, num_heads=4)
    x_HnD = klt_tokens(codec, 50)
    x_HnD[0, 20] *= 1000
    x_HnD[1] = 0.0
    x_HnD[2] = 3.0
    x_HnD[3] = codec.coding.mean_h1D[3].to(DEVICE)
    assert_errs_no_more(codec, x_HnD.transpose(0, 1))


def test_channels_far_from_zero_lose_nothing() -> None:
    """Means a thousand times larger than what varies."""
    codec = klt_codec("klt5")
    codec.coding.mean_h1D.mul_(1000)
    codec.coding.analysed_mean_h1D.mul_(1000)
    assert_errs_no_more(codec, klt_tokens(codec, 60).transpose(0, 1))


def test_reads_any_strides() -> None:
    """Queries, keys and values of a fused projection, [n, 3, H, D], and heads first."""
    codec = klt_codec("klt1.5")
    x_HnD = klt_tokens(codec, 40)
    expected = written(codec, x_HnD.transpose(0, 1).contiguous())
    assert torch.equal(written(codec, x_HnD.transpose(0, 1)), expected)
    fused = torch.full((40, 3, 2, 32), torch.nan)
    fused[:, 1] = x_HnD.transpose(0, 1)
    assert torch.equal(written(codec, fused[:, 1]), expected)


def test_pages_beyond_four_gibibytes_are_reached() -> None:
    """Their byte offsets do not fit in 32 bits. Memory that is never touched costs nothing."""
    codec = klt_codec("klt1.5", head_dim=64, num_heads=1, rows=24)
    x_nHD = klt_tokens(codec, 40).transpose(0, 1)
    pool = torch.empty(3_000_000, codec.page.num_bytes, dtype=torch.uint8)
    assert (len(pool) - 1) * codec.page.num_bytes > 2**32
    far = torch.full((1, 1), len(pool) - 1, dtype=torch.int32)
    encode_klt(x_nHD, pool, KltLayout.of(codec.page, codec.coding, DEVICE), far)
    assert torch.equal(pool[far.long()], written(codec, x_nHD))


@pytest.mark.filterwarnings("ignore:invalid value encountered", "ignore:overflow encountered")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_that_no_page_can_hold_are_flagged_by_head(dtype: torch.dtype) -> None:
    codec = klt_codec("klt1.5", num_heads=7)
    x_nHD = klt_tokens(codec, 40).transpose(0, 1).to(dtype)
    x_nHD[20, 1, 31], x_nHD[0, 2, 0], x_nHD[39, 3, 5] = torch.nan, torch.inf, -torch.inf
    x_nHD[39, 4, 31], x_nHD[9, 5, 7], x_nHD[9, 6, 7] = 65504.0, -7e4, 65000.0
    records = random_pool(codec, 60)
    bad = encode_klt(
        x_nHD, records, KltLayout.of(codec.page, codec.coding, DEVICE), scattered_pages(codec, 40, records)[0]
    )
    assert bad.bool().any(1).tolist() == [False, True, True, True, True, True, False]


def test_heads_and_pages_must_fit() -> None:
    codec = klt_codec("klt1.5")
    records, layout = random_pool(codec, 60), KltLayout.of(codec.page, codec.coding, DEVICE)
    pages = scattered_pages(codec, 40, records)[0]
    with pytest.raises(ShapeError, match=r"tokens \(40, 3, 32\)"):
        encode_klt(torch.zeros(40, 3, 32), records, layout, pages)
    with pytest.raises(ShapeError, match=r"for pages \(2, 1\)"):
        encode_klt(torch.zeros(40, 2, 32), records, layout, pages[:, :1])

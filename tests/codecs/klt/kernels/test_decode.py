"""Decoding klt pages into a dense scratch, against the codec."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
import triton.language as tl
from torch import Tensor

from pagedvid.codecs.klt.codec import KltCodec
from pagedvid.codecs.klt.kernels import decode as klt_decode
from pagedvid.codecs.klt.kernels.layout import KltLayout, unsupported_reasons
from pagedvid.codecs.klt.kernels.pages import KltKernels
from pagedvid.codecs.registry import read_codec
from pagedvid.codecs.spec import PageFormat
from pagedvid.errors import ShapeError
from tests.codecs.decoding import check_decode, check_out_heads, decoded, random_angles
from tests.codecs.klt.kernels.scenes import klt_codec, klt_tokens, random_pool, scattered_pages
from tests.devices import DEVICE

CASES = (
    ("klt0.5", {"num_frames": 3, "rows": 5}, 27),
    ("klt1.5", {"num_frames": 3, "rows": 6, "head_dim": 64}, 11),
    ("klt3", {"num_frames": 1, "rows": 7}, 19),
    ("klt5", {"num_frames": 4, "rows": 11}, 5),
    ("klt2", {"num_frames": 5, "rows": 9, "head_dim": 64}, 8),
    ("klt1", {"num_frames": 8, "rows": 17, "tokens_per_frame": 3}, 17),
)
"""Names, shapes, and the resulting blocks of a page; with an odd number of blocks, codes begin inside bytes."""


def stored(codec: KltCodec, num_tokens: int, factor: float = 1.0, num_chunks: int = 1) -> tuple[Tensor, Tensor]:
    """(pool, pages [S, H, P]) with tokens in pages anywhere."""
    records = random_pool(codec, 80)
    pages = scattered_pages(codec, num_tokens, records, num_chunks)
    for number, of_chunk in enumerate(pages):
        records[of_chunk.long()] = codec.encode(factor * klt_tokens(codec, num_tokens, seed=number))
    return records, pages


def kernels_of(codec: KltCodec) -> KltKernels:
    return KltKernels(KltLayout.of(codec.page, codec.coding, DEVICE))


def check(codec: KltCodec, records: Tensor, pages_SHP: Tensor, num_tokens: int, *more: Any, **options: Any) -> Tensor:
    return check_decode(kernels_of(codec), codec, records, pages_SHP, num_tokens, *more, **options)


def test_heads_that_are_not_neighbours() -> None:
    codec = klt_codec("klt2", num_heads=3)
    records, pages = stored(codec, 40, num_chunks=2)
    check_out_heads(kernels_of(codec), records, pages, 40, 32, random_angles(40, 32, [0, 1]), torch.bfloat16)


@pytest.mark.parametrize(("name", "shape", "page_blocks"), CASES, ids=[case[0] for case in CASES])
@pytest.mark.parametrize("num_tokens", [1, 17, 77])
def test_equals_the_codec(name: str, shape: Mapping[str, int], page_blocks: int, num_tokens: int) -> None:
    """Into a float32 scratch to the last digits; in 77 tokens there are frames and blocks that are not full."""
    codec = klt_codec(name, **shape)
    assert read_codec(name).page_blocks(codec.page) == page_blocks
    records, pages = stored(codec, num_tokens)
    angles = random_angles(num_tokens, codec.page.head_dim, [0]) if num_tokens != 17 else None
    check(codec, records, pages, num_tokens, angles)


def test_pages_of_a_model() -> None:
    """24 rows of 128 channels: 43 blocks of 3 frames, two pages, the second not full."""
    codec = klt_codec("klt1.5", 128, 1, rows=24, tokens_per_frame=60, num_frames=3)
    records, pages = stored(codec, 175)
    assert pages.shape[2] == 2
    check(codec, records, pages, 175)


@pytest.mark.parametrize("num_heads", [1, 3])
@pytest.mark.parametrize("num_ranges", [1, 2])
def test_chunks_of_several_ranges_and_heads(num_heads: int, num_ranges: int) -> None:
    """Two of four chunks share a table; two are the same chunk."""
    codec = klt_codec("klt1.5", num_heads=num_heads)
    records, pages = stored(codec, 47, num_chunks=3)
    angles = random_angles(47, 32, [0, 1, 0, 2])
    check(codec, records, pages[[0, 1, 2, 1]], 47, angles, num_ranges)


def test_a_page_writes_its_own_tokens_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs run in any order, so what is decoded past the blocks of a page must not overwrite those of the next."""
    kernel = klt_decode.klt_decode_kernel

    class FirstPages:
        def __getitem__(self, grid: tuple[int, int, int]) -> Any:
            return kernel[(1, *grid[1:])]

    monkeypatch.setattr(klt_decode, "klt_decode_kernel", FirstPages())
    codec = klt_codec("klt1.5", tokens_per_frame=20)
    records, pages = stored(codec, 60)
    out = torch.full((1, 1, 60, 2, 32), torch.nan)
    kernels_of(codec).decode(records, pages, 60, out)
    expected = decoded(codec, records, pages, 60)
    expected.unflatten(2, (3, 20))[:, :, :, read_codec("klt1.5").page_blocks(codec.page) :] = torch.nan
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize(("size", "factor"), [(1.0, 1.0), (1e-6, 1.0), (1e3, 1.0), (1.0, 5e3)])
def test_bfloat16_scratch(size: float, factor: float) -> None:
    """Of models of any size, and of tokens far larger than the calibration's: float16 products keep their range."""
    codec = klt_codec("klt3", head_dim=64, size=size)
    records, pages = stored(codec, 70, factor)
    angles = random_angles(70, 64, [0], torch.bfloat16)
    # the interpreter truncates instead of rounding
    check(codec, records, pages, 70, angles, dtype=torch.bfloat16, relative=2e-3)


def test_float16_and_float8() -> None:
    codec = klt_codec("klt3", head_dim=64)
    records, pages = stored(codec, 33)
    angles, scales = random_angles(33, 64, [0]), torch.tensor([[40.0, 0.5]], device=DEVICE)
    check(codec, records, pages, 33, angles, dtype=torch.float16, relative=2e-3)
    check(codec, records, pages, 33, angles, dtype=torch.float8_e4m3fn, inverse_scales_SH=scales, relative=2e-3)


def test_float16_products_miss_by_far_less_than_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    codec = klt_codec("klt5", head_dim=64, rows=40)
    assert 8 in codec.coding.segments
    records, pages = stored(codec, 60)
    constants = klt_decode.klt_decode_constants

    def float16_products(*arguments: Any) -> dict[str, Any]:
        return {**constants(*arguments), "MATMUL": tl.float16}

    monkeypatch.setattr(klt_decode, "klt_decode_constants", float16_products)
    out = torch.full((1, 1, 60, 2, 64), torch.nan)
    kernels_of(codec).decode(records, pages, 60, out)
    expected = decoded(codec, records, pages, 60)
    lost = klt_tokens(codec, 60).transpose(0, 1) - expected
    missed = (out - expected).square().mean()
    assert 0 < missed < 1e-3 * lost.square().mean()


def test_pages_beyond_four_gibibytes_are_reached() -> None:
    """Their byte offsets do not fit in 32 bits. Memory that is never touched costs nothing."""
    codec = klt_codec("klt1.5", head_dim=64, num_heads=1, rows=24)
    records, pages = stored(codec, 40)
    assert pages.numel() == 1
    pool = torch.empty(3_000_000, codec.page.num_bytes, dtype=torch.uint8)
    far = torch.full_like(pages, len(pool) - 1)
    pool[far.long()] = records[pages.long()]
    assert (len(pool) - 1) * codec.page.num_bytes > 2**32
    check(codec, pool, far, 40)


def test_heads_and_pages_must_fit() -> None:
    codec = klt_codec("klt1.5")
    records, pages = stored(codec, 40)
    with pytest.raises(ShapeError, match=r"tokens \(40, 1, 32\)"):
        kernels_of(codec).decode(records, pages[:, :1], 40, torch.empty(1, 1, 40, 1, 32))
    with pytest.raises(ShapeError, match=r"for pages \(1, 2, 1\)"):
        kernels_of(codec).decode(records, pages[..., :1], 40, torch.empty(1, 1, 40, 2, 32))


def test_says_which_head_dims_kernels_cannot_read() -> None:
    assert unsupported_reasons(PageFormat(128)) == []
    assert "power of two" in unsupported_reasons(PageFormat(96))[0]
    assert "power of two, 32 or more" in unsupported_reasons(PageFormat(16))[0]
    assert "more than 128" in unsupported_reasons(PageFormat(256))[0]

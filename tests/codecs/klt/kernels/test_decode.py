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
from pagedvid.codecs.klt.kernels.decode import decode_klt
from pagedvid.codecs.klt.kernels.layout import KltLayout, unsupported_reasons
from pagedvid.codecs.registry import read_codec
from pagedvid.codecs.spec import PageFormat
from pagedvid.errors import ShapeError
from pagedvid.rotary.axis_tables import AngleTables
from tests.attention.kernels.scenes import DEVICE
from tests.codecs.klt.kernels.scenes import klt_codec, klt_decoded, klt_tokens, random_pool, scattered_pages

CASES = (
    ("klt0.5", {"num_frames": 3, "rows": 5}, 27),
    ("klt1.5", {"num_frames": 3, "rows": 6, "head_dim": 64}, 11),
    ("klt3", {"num_frames": 1, "rows": 7}, 19),
    ("klt5", {"num_frames": 4, "rows": 11}, 5),
    ("klt2", {"num_frames": 5, "rows": 9, "head_dim": 64}, 8),
    ("klt1", {"num_frames": 8, "rows": 17, "tokens_per_frame": 3}, 17),
)
"""Names, shapes, and the resulting blocks of a page; with an odd number of blocks, codes begin inside bytes."""


def stored(codec: KltCodec, num_tokens: int, factor: float = 1.0) -> tuple[Tensor, Tensor]:
    """(pool, pages) with tokens in pages anywhere."""
    records = random_pool(codec, 60)
    pages = scattered_pages(codec, num_tokens, records)
    records[pages.long()] = codec.encode(factor * klt_tokens(codec, num_tokens))
    return records, pages


def grid_of(codec: KltCodec, num_frames: int, seed: int = 0) -> AngleTables:
    """Frames of rows of 2 or 3 tokens, pairs that rotate with time, rows and columns in no order."""
    generator = torch.Generator("cpu").manual_seed(seed)
    size, pairs = codec.page.tokens_per_frame, codec.page.head_dim // 2
    width = 2 if size % 2 == 0 else 3
    angles = torch.randn(size // width + width + num_frames, pairs, generator=generator, device="cpu").to(DEVICE)
    axes = (torch.arange(pairs) * 5 + 1) % 7 % 3
    return AngleTables(angles.cos(), angles.sin(), axes.int(), size, width)


@pytest.mark.parametrize(("name", "shape", "page_blocks"), CASES, ids=[case[0] for case in CASES])
@pytest.mark.parametrize("num_tokens", [1, 17, 77])
def test_equals_the_codec(name: str, shape: Mapping[str, int], page_blocks: int, num_tokens: int) -> None:
    """Into a float32 scratch to the last digits; in 77 tokens there are frames and blocks that are not full."""
    codec = klt_codec(name, **shape)
    assert read_codec(name).page_blocks(codec.page) == page_blocks
    records, pages = stored(codec, num_tokens)
    out = torch.full((num_tokens, 2, codec.page.head_dim), torch.nan)
    angles = grid_of(codec, num_frames=40) if num_tokens != 17 else None
    decode_klt(records, KltLayout.of(codec.page, codec.coding, DEVICE), pages, out, angles, frame_row=12)
    angles = angles.of_chunk(12, num_tokens) if angles is not None else None
    expected = klt_decoded(codec, records[pages.long()], num_tokens, angles)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-5)


def test_pages_of_a_model() -> None:
    """24 rows of 128 channels: 43 blocks of 3 frames, two pages, the second not full."""
    codec = klt_codec("klt1.5", 128, 1, rows=24, tokens_per_frame=60, num_frames=3)
    records, pages = stored(codec, 175)
    assert pages.shape[1] == 2
    out = torch.full((175, 1, 128), torch.nan)
    decode_klt(records, KltLayout.of(codec.page, codec.coding, DEVICE), pages, out)
    torch.testing.assert_close(out, klt_decoded(codec, records[pages.long()], 175), rtol=0, atol=1e-5)


def test_angles_of_every_token() -> None:
    """Tables that know no grid have a row for every token, after two that are not read."""
    codec = klt_codec("klt1.5")
    records, pages = stored(codec, 47)
    theta = torch.randn(60, 16)
    angles = AngleTables.by_token(theta.cos(), theta.sin())
    out = torch.full((47, 2, 32), torch.nan)
    decode_klt(records, KltLayout.of(codec.page, codec.coding, DEVICE), pages, out, angles, angles.first_frame_row + 9)
    expected = klt_decoded(codec, records[pages.long()], 47, (theta[9:56].cos(), theta[9:56].sin()))
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-5)


def test_writes_into_any_strides_and_nothing_else() -> None:
    codec = klt_codec("klt1.5", head_dim=64)
    records, pages = stored(codec, 50)
    buffer = torch.full((3, 60, 64), 7.0)
    decode_klt(records, KltLayout.of(codec.page, codec.coding, DEVICE), pages, buffer[:2, :50].transpose(0, 1))
    expected = klt_decoded(codec, records[pages.long()], 50)
    torch.testing.assert_close(buffer[:2, :50].transpose(0, 1), expected, rtol=0, atol=1e-5)
    assert (buffer[2] == 7).all() and (buffer[:2, 50:] == 7).all()


def test_a_page_writes_its_own_tokens_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs run in any order, so what is decoded past the blocks of a page must not overwrite those of the next."""
    kernel = klt_decode.klt_decode_kernel

    class FirstPages:
        def __getitem__(self, grid: tuple[int, int]) -> Any:
            return kernel[(1, grid[1])]

    monkeypatch.setattr(klt_decode, "klt_decode_kernel", FirstPages())
    codec = klt_codec("klt1.5", tokens_per_frame=20)
    records, pages = stored(codec, 60)
    out = torch.full((60, 2, 32), torch.nan)
    decode_klt(records, KltLayout.of(codec.page, codec.coding, DEVICE), pages, out)
    expected = klt_decoded(codec, records[pages.long()], 60)
    expected.unflatten(0, (3, 20))[:, read_codec("klt1.5").page_blocks(codec.page) :] = torch.nan
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize(("size", "factor"), [(1.0, 1.0), (1e-6, 1.0), (1e3, 1.0), (1.0, 5e3)])
def test_bfloat16_scratch(size: float, factor: float) -> None:
    """Of models of any size, and of tokens far larger than the calibration's: float16 products keep their range."""
    codec = klt_codec("klt3", head_dim=64, size=size)
    records, pages = stored(codec, 70, factor)
    angles = grid_of(codec, num_frames=7)
    out = torch.full((70, 2, 64), torch.nan, dtype=torch.bfloat16)
    decode_klt(records, KltLayout.of(codec.page, codec.coding, DEVICE), pages, out, angles, 7)
    expected = klt_decoded(codec, records[pages.long()], 70, angles.of_chunk(7, 70))
    scale = expected.abs().max().item()
    # the interpreter truncates instead of rounding
    torch.testing.assert_close(out.float(), expected, rtol=2**-7, atol=2e-3 * scale)


def test_float16_products_miss_by_far_less_than_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    codec = klt_codec("klt5", head_dim=64, rows=40)
    assert 8 in codec.coding.segments
    records, pages = stored(codec, 60)
    out = torch.full((60, 2, 64), torch.nan)
    constants = klt_decode.klt_decode_constants

    def float16_products(*arguments: Any) -> dict[str, Any]:
        return {**constants(*arguments), "MATMUL": tl.float16}

    monkeypatch.setattr(klt_decode, "klt_decode_constants", float16_products)
    decode_klt(records, KltLayout.of(codec.page, codec.coding, DEVICE), pages, out)
    expected = klt_decoded(codec, records[pages.long()], 60)
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
    out = torch.full((40, 1, 64), torch.nan)
    decode_klt(pool, KltLayout.of(codec.page, codec.coding, DEVICE), far, out)
    torch.testing.assert_close(out, klt_decoded(codec, records[pages.long()], 40), rtol=0, atol=1e-5)


def test_heads_and_pages_must_fit() -> None:
    codec = klt_codec("klt1.5")
    records, pages = stored(codec, 40)
    layout = KltLayout.of(codec.page, codec.coding, DEVICE)
    with pytest.raises(ShapeError, match=r"tokens \(40, 1, 32\)"):
        decode_klt(records, layout, pages[:1], torch.empty(40, 1, 32))
    with pytest.raises(ShapeError, match=r"for pages \(2, 1\)"):
        decode_klt(records, layout, pages[:, :1], torch.empty(40, 2, 32))


def test_says_which_head_dims_kernels_cannot_read() -> None:
    assert unsupported_reasons(PageFormat(128)) == []
    assert "power of two" in unsupported_reasons(PageFormat(96))[0]
    assert "power of two, 32 or more" in unsupported_reasons(PageFormat(16))[0]
    assert "more than 128" in unsupported_reasons(PageFormat(256))[0]

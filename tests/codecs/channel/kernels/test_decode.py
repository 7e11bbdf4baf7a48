"""Decoding pages of channel codes and of plain values, against the codecs."""

from __future__ import annotations

import pytest
import torch

from tests.codecs.channel.kernels.scenes import ChannelScene
from tests.codecs.decoding import check_decode, check_out_heads, random_angles
from tests.devices import DEVICE

CODECS = ("int2", "int4", "int8", "bf16", "fp32", "int2-pair", "int4-s8", "int2-pair-s8")


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("num_tokens", [1, 17, 300])
def test_equals_the_codec(codec: str, num_tokens: int) -> None:
    scene = ChannelScene(codec, 64)
    angles = random_angles(num_tokens, 64, [0]) if num_tokens != 17 else None
    check_decode(scene.kernels, scene.codec, scene.records, scene.store(num_tokens), num_tokens, angles)


@pytest.mark.parametrize("codec", ["int2", "int8", "bf16"])
@pytest.mark.parametrize("num_heads", [1, 3, 5])
@pytest.mark.parametrize("num_ranges", [1, 2])
def test_chunks_of_several_ranges_and_heads(codec: str, num_heads: int, num_ranges: int) -> None:
    """Four heads are decoded by one program, so that five need two. Some chunks share a table."""
    scene = ChannelScene(codec, 32, num_heads)
    pages = scene.store(50, num_chunks=4)
    angles = random_angles(50, 32, [0, 1, 0, 2])
    check_decode(scene.kernels, scene.codec, scene.records, pages, 50, angles, num_ranges)


@pytest.mark.parametrize("codec", ["int2", "bf16"])
@pytest.mark.parametrize("num_tokens", [1560, 4680])
def test_frames_and_chunks_that_are_no_multiple_of_a_page(codec: str, num_tokens: int) -> None:
    scene = ChannelScene(codec, 32, num_heads=1, num_pages=300)
    angles = random_angles(num_tokens, 32, [0])
    check_decode(scene.kernels, scene.codec, scene.records, scene.store(num_tokens), num_tokens, angles)


@pytest.mark.parametrize(("codec", "rows"), [("int2", 32), ("int2", 37), ("int8", 19), ("bf16", 37)])
def test_pages_of_other_lengths(codec: str, rows: int) -> None:
    scene = ChannelScene(codec, 128, rows=rows)
    check_decode(scene.kernels, scene.codec, scene.records, scene.store(130), 130, random_angles(130, 128, [0]))


@pytest.mark.parametrize("codec", ["int4", "int2-pair-s8", "bf16"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(codec: str, dtype: torch.dtype) -> None:
    scene = ChannelScene(codec, 64)
    pages = scene.store(70, num_chunks=2)
    angles = random_angles(70, 64, [0, 0], torch.bfloat16)
    check_decode(scene.kernels, scene.codec, scene.records, pages, 70, angles, num_ranges=2, dtype=dtype)


@pytest.mark.parametrize("codec", ["int2", "bf16"])
@pytest.mark.parametrize("rotates", [True, False])
def test_float8(codec: str, rotates: bool) -> None:
    """With a scale for each chunk and head; one is so large that values are saturated."""
    scene = ChannelScene(codec, 64)
    pages = scene.store(40, num_chunks=2)
    angles = random_angles(40, 64, [0, 1]) if rotates else None
    scales = torch.tensor([[1.0, 50.0], [0.3, 1e4]], device=DEVICE)
    found = check_decode(
        scene.kernels, scene.codec, scene.records, pages, 40, angles,
        dtype=torch.float8_e4m3fn, inverse_scales_SH=scales,
    )  # fmt: skip
    assert found.float().abs().max() == 448


@pytest.mark.parametrize("codec", ["int2", "int4-pair-s8", "bf16"])
@pytest.mark.parametrize("rotates", [True, False])
def test_heads_that_are_not_neighbours(codec: str, rotates: bool) -> None:
    """More than one program takes."""
    scene = ChannelScene(codec, 32, num_heads=5)
    pages, angles = scene.store(40, num_chunks=2), random_angles(40, 32, [0, 1]) if rotates else None
    check_out_heads(scene.kernels, scene.records, pages, 40, 32, angles)


def test_float16_is_saturated() -> None:
    """Two values near the largest, rotated by 45 degrees, would be infinite."""
    scene = ChannelScene("bf16", 32, num_heads=1)
    pages = scene.take(1)[None]
    scene.records[pages[0].long()] = scene.codec.encode(torch.full((1, 5, 32), 65000.0))
    found = check_decode(
        scene.kernels, scene.codec, scene.records, pages, 5, random_angles(5, 32, [0]), dtype=torch.float16
    )
    assert found.float().abs().max() == 65504


def test_pages_beyond_four_gibibytes_are_reached() -> None:
    """Their byte offsets do not fit in 32 bits. Memory that is never touched costs nothing."""
    scene = ChannelScene("int2", 64, num_heads=1)
    pages = scene.store(100)
    pool = torch.empty(2_000_000, scene.page.num_bytes, dtype=torch.uint8)
    far = torch.full_like(pages, len(pool) - 1)
    pool[far.long()] = scene.records[pages.long()]
    assert (len(pool) - 1) * scene.page.num_bytes > 2**32
    check_decode(scene.kernels, scene.codec, pool, far, 100)

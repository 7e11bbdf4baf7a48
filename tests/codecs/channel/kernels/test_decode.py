"""Decoding pages into a dense scratch, against the codecs."""

from __future__ import annotations

import pytest
import torch

from pagedvid.codecs.channel.kernels.decode import decode
from pagedvid.rotary.axis_tables import AngleTables
from tests.attention.kernels import reference
from tests.attention.kernels.reference import Segment
from tests.attention.kernels.scenes import Scene

CODECS = ("int2", "int4", "int8", "bf16", "fp32", "int2-pair", "int4-s8", "int2-pair-s8")


def angles_of(scene: Scene, segment: Segment) -> tuple[AngleTables | None, int]:
    return (None if segment.angles is None else scene.angles()), scene.frame_row(segment)


def check(codec: str, head_dim: int, num_tokens: int, angles: bool, rows: int = 36) -> None:
    scene = Scene((codec, codec), head_dim, num_kv_heads=1 if num_tokens > 1000 else 2, rows=rows, num_pages=700)
    segment = scene.add(num_tokens, angles=angles)
    out = torch.full((num_tokens, scene.num_kv_heads, head_dim), torch.nan)
    decode(scene.records, scene.layouts[0], segment.keys_HP, out, *angles_of(scene, segment))
    expected = reference.decode(scene.page, codec, scene.records, segment.keys_HP, num_tokens, segment.angles)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("num_tokens", [1, 17, 300])
def test_equals_the_codec(codec: str, num_tokens: int) -> None:
    check(codec, 64, num_tokens, angles=num_tokens != 17)


@pytest.mark.parametrize("codec", ["int2", "bf16"])
@pytest.mark.parametrize("num_tokens", [1560, 4680])
def test_frames_and_chunks_that_are_no_multiple_of_a_page(codec: str, num_tokens: int) -> None:
    check(codec, 32, num_tokens, angles=True)


@pytest.mark.parametrize(("codec", "rows"), [("int2", 32), ("int8", 19), ("bf16", 37)])
def test_pages_of_other_lengths(codec: str, rows: int) -> None:
    check(codec, 128, 130, angles=True, rows=rows)


def test_writes_into_any_strides_and_nothing_else() -> None:
    scene = Scene(("int2", "int2"), 64, num_kv_heads=2)
    segment = scene.add(150)
    buffer = torch.full((3, 160, 64), 7.0)
    decode(scene.records, scene.layouts[0], segment.keys_HP, buffer[:2, :150].transpose(0, 1))
    expected = reference.decode(scene.page, "int2", scene.records, segment.keys_HP, 150)
    torch.testing.assert_close(buffer[:2, :150].transpose(0, 1), expected, rtol=0, atol=1e-5)
    assert (buffer[2] == 7).all() and (buffer[:2, 150:] == 7).all()


def test_bfloat16_scratch() -> None:
    scene = Scene(("int4", "int4"), 64, num_kv_heads=1)
    segment = scene.add(70)
    out = torch.empty(70, 1, 64, dtype=torch.bfloat16)
    decode(scene.records, scene.layouts[0], segment.keys_HP, out, *angles_of(scene, segment))
    expected = reference.decode(scene.page, "int4", scene.records, segment.keys_HP, 70, segment.angles)
    torch.testing.assert_close(
        out.float(), expected, rtol=2**-7, atol=1e-6
    )  # the interpreter truncates instead of rounding


def test_pages_beyond_four_gibibytes_are_reached() -> None:
    """Their byte offsets do not fit in 32 bits. Memory that is never touched costs nothing."""
    scene = Scene(("int2", "int2"), 64, num_kv_heads=1)
    segment = scene.add(100)
    pool = torch.empty(2_000_000, scene.page.num_bytes, dtype=torch.uint8)
    far = torch.full_like(segment.keys_HP, len(pool) - 1)
    pool[far.long()] = scene.records[segment.keys_HP.long()]
    assert (len(pool) - 1) * scene.page.num_bytes > 2**32
    out = torch.empty(100, 1, 64)
    decode(pool, scene.layouts[0], far, out)
    expected = reference.decode(scene.page, "int2", scene.records, segment.keys_HP, 100)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-5)

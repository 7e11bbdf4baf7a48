"""Decoding pages of per-token codes, against the codecs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pagedvid.codecs.registry import read_codec
from pagedvid.codecs.spec import PageFormat
from pagedvid.codecs.token.kernels.decode import decode_token
from pagedvid.codecs.token.kernels.layout import TokenLayout
from pagedvid.errors import ConfigError
from pagedvid.rotary.axis_tables import AngleTables
from pagedvid.rotary.tables import rotate
from tests.attention.kernels.scenes import DEVICE
from tests.codecs.token.kernels.scenes import CODECS, TokenScene, widest


def reference(
    scene: TokenScene, pages: Tensor, num_tokens: int, angles: AngleTables | None = None, frame_row: int = 0
) -> Tensor:
    """Tokens decoded by the codec, float32 [n, H, D]."""
    out = torch.empty(len(pages), read_codec(scene.codec_name).padded_tokens(scene.page, num_tokens), scene.head_dim)
    x_HnD = scene.codec.decode(scene.records[pages.long()], num_tokens, out)
    if angles is not None:
        x_HnD = rotate(x_HnD, *angles.of_chunk(frame_row, num_tokens))
    return x_HnD.transpose(0, 1)


def check(scene: TokenScene, num_tokens: int, angles: AngleTables | None = None, frame_row: int = 0) -> None:
    pages = scene.store(num_tokens)
    out = torch.full((num_tokens, scene.num_heads, scene.head_dim), torch.nan)
    decode_token(scene.records, scene.layout, pages, out, angles, frame_row)
    expected = reference(scene, pages, num_tokens, angles, frame_row)
    torch.testing.assert_close(out, expected, rtol=3e-6, atol=1e-5)


def grid_angles(scene: TokenScene, num_frames: int) -> AngleTables:
    """For frames of 4 x 3 tokens; pairs rotate with time, rows and columns in no order."""
    angles = scene.randn(4 + 3 + num_frames, scene.head_dim // 2)
    axes = (torch.arange(scene.head_dim // 2) * 5 + 1) % 7 % 3
    return AngleTables(angles.cos(), angles.sin(), axes.int(), frame_tokens=12, width=3)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("head_dim", [32, 64, 128])
@pytest.mark.parametrize("num_tokens", [1, 17, 300])
def test_equals_the_codec(codec: str, head_dim: int, num_tokens: int) -> None:
    check(TokenScene(widest(codec, head_dim), head_dim), num_tokens)


@pytest.mark.parametrize(
    ("codec", "rows", "page_tokens"),
    [("token2-g64", 36, 115), ("token2-g16", 37, 74), ("token4-g32", 19, 30), ("hadamard2-g64", 35, 112)],
)
def test_pages_of_any_number_of_tokens(codec: str, rows: int, page_tokens: int) -> None:
    scene = TokenScene(codec, 128, num_heads=1, rows=rows)
    assert scene.layout.page_tokens == page_tokens
    check(scene, 260)


@pytest.mark.parametrize("codec", CODECS)
def test_angles_of_a_grid(codec: str) -> None:
    scene = TokenScene(codec, 128, num_heads=1)
    angles = grid_angles(scene, 20)
    check(scene, 130, angles, angles.first_frame_row + 5)


def test_angles_by_token() -> None:
    scene = TokenScene("token2-g64", 64)
    angles = scene.randn(100, 32)
    angles = AngleTables.by_token(angles.cos(), angles.sin())
    check(scene, 70, angles, angles.first_frame_row + 30)


@pytest.mark.parametrize("codec", ["token2-g64", "hadamard2-g64"])
def test_writes_into_any_strides_and_nothing_else(codec: str) -> None:
    scene = TokenScene(codec, 64)
    pages = scene.store(150)
    buffer = torch.full((3, 160, 64), 7.0)
    decode_token(scene.records, scene.layout, pages, buffer[:2, :150].transpose(0, 1))
    torch.testing.assert_close(buffer[:2, :150].transpose(0, 1), reference(scene, pages, 150), rtol=3e-6, atol=1e-5)
    assert (buffer[2] == 7).all() and (buffer[:2, 150:] == 7).all()


def test_some_columns_of_a_page_table() -> None:
    scene = TokenScene("token2-g64", 64)
    first, second = scene.store(250), scene.store(250)
    columns = torch.cat([first, second], dim=1)[:, 1:3]
    out = torch.empty(150, 2, 64)
    decode_token(scene.records, scene.layout, columns, out)
    torch.testing.assert_close(out, reference(scene, columns, 150), rtol=3e-6, atol=1e-5)


@pytest.mark.parametrize("codec", ["token4-g32", "hadamard4-g32"])
def test_bfloat16_scratch(codec: str) -> None:
    scene = TokenScene(codec, 64)
    angles = grid_angles(scene, 9)
    pages = scene.store(70)
    out = torch.empty(70, 2, 64, dtype=torch.bfloat16)
    decode_token(scene.records, scene.layout, pages, out, angles, angles.first_frame_row)
    expected = reference(scene, pages, 70, angles, angles.first_frame_row)
    torch.testing.assert_close(
        out.float(), expected, rtol=2**-7, atol=1e-5
    )  # the interpreter truncates instead of rounding


def test_large_and_small_numbers_keep_their_bits_when_rotated() -> None:
    scene = TokenScene("hadamard8-g32", 64, num_heads=1)
    pages = scene.take(40)
    x = scene.randn(1, 40, 64) * torch.logspace(-3, 4, 40)[:, None]
    scene.records[pages.long()] = scene.codec.encode(x)
    out = torch.empty(40, 1, 64)
    decode_token(scene.records, scene.layout, pages, out)
    expected = reference(scene, pages, 40)
    assert ((out - expected).abs().amax(-1) <= 1e-6 * expected.abs().amax(-1)).all()


def test_pages_beyond_four_gibibytes_are_reached() -> None:
    scene = TokenScene("token2-g64", 64)
    pages = scene.store(100)
    pool, far = scene.copy_far(pages)
    out = torch.empty(100, 2, 64)
    decode_token(pool, scene.layout, far, out)
    torch.testing.assert_close(out, reference(scene, pages, 100), rtol=3e-6, atol=1e-5)


def test_odd_head_dims_are_refused() -> None:
    with pytest.raises(ConfigError, match="head_dim is 96"):
        TokenLayout.of(PageFormat(96), read_codec("token2-g32"), DEVICE)

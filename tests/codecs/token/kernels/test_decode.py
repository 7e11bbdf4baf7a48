"""Decoding pages of per-token codes, against the codecs."""

from __future__ import annotations

import pytest
import torch

from pagedvid.codecs.base import CodecOperations
from pagedvid.codecs.registry import read_codec
from pagedvid.codecs.spec import PageFormat
from pagedvid.codecs.token.kernels.layout import TokenLayout
from pagedvid.codecs.token.kernels.pages import TokenKernels
from pagedvid.errors import ConfigError
from tests.codecs.decoding import check_decode, check_out_heads, random_angles
from tests.codecs.token.kernels.scenes import CODECS, TokenScene, widest
from tests.devices import DEVICE


def kernels_of(scene: TokenScene) -> TokenKernels:
    return TokenKernels(scene.layout)


def check(scene: TokenScene, num_tokens: int, tables: list[int] | None = None, num_chunks: int = 1) -> None:
    pages = torch.stack([scene.store(num_tokens) for _ in range(num_chunks)])
    angles = None if tables is None else random_angles(num_tokens, scene.head_dim, tables)
    check_decode(kernels_of(scene), scene.codec, scene.records, pages, num_tokens, angles)


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
def test_rotated(codec: str) -> None:
    check(TokenScene(codec, 128, num_heads=1), 130, [0])


@pytest.mark.parametrize("num_heads", [3, 5])
def test_chunks_of_several_heads(num_heads: int) -> None:
    """Four heads are decoded by one program. Two of three chunks share a table."""
    check(TokenScene("token2-g64", 64, num_heads), 70, [0, 1, 0], num_chunks=3)


@pytest.mark.parametrize("codec", ["token2-g32", "hadamard4-g32"])
def test_heads_that_are_not_neighbours(codec: str) -> None:
    scene = TokenScene(codec, 32, num_heads=5)
    pages = torch.stack([scene.store(40) for _ in range(2)])
    check_out_heads(kernels_of(scene), scene.records, pages, 40, 32, random_angles(40, 32, [0, 1]))


@pytest.mark.parametrize("codec", ["token4-g32", "hadamard4-g32"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(codec: str, dtype: torch.dtype) -> None:
    scene = TokenScene(codec, 64)
    angles = random_angles(70, 64, [0, 1], torch.bfloat16)
    pages = torch.stack([scene.store(70), scene.store(70)])
    check_decode(kernels_of(scene), scene.codec, scene.records, pages, 70, angles, num_ranges=2, dtype=dtype)


def test_float8() -> None:
    scene = TokenScene("token2-g64", 64)
    pages = scene.store(40)[None]
    scales = torch.tensor([[30.0, 0.3]], device=DEVICE)
    check_decode(
        kernels_of(scene), scene.codec, scene.records, pages, 40, random_angles(40, 64, [0]),
        dtype=torch.float8_e4m3fn, inverse_scales_SH=scales,
    )  # fmt: skip


def test_large_and_small_numbers_keep_their_bits_when_rotated() -> None:
    scene = TokenScene("hadamard8-g32", 64, num_heads=1)
    pages = scene.take(40)
    x = scene.randn(1, 40, 64) * torch.logspace(-3, 4, 40)[:, None]
    scene.records[pages.long()] = scene.codec.encode(x)
    out = torch.empty(1, 1, 40, 1, 64)
    expected = torch.empty_like(out)
    kernels_of(scene).decode(scene.records, pages[None], 40, out)
    CodecOperations(scene.codec, DEVICE).decode(scene.records, pages[None], 40, expected)
    assert ((out - expected).abs().amax(-1) <= 1e-6 * expected.abs().amax(-1)).all()


def test_pages_beyond_four_gibibytes_are_reached() -> None:
    scene = TokenScene("token2-g64", 64)
    pool, far = scene.copy_far(scene.store(100))
    check_decode(kernels_of(scene), scene.codec, pool, far[None], 100)


def test_odd_head_dims_are_refused() -> None:
    with pytest.raises(ConfigError, match="head_dim is 96"):
        TokenLayout.of(PageFormat(96), read_codec("token2-g32"), DEVICE)

"""Mean square step sizes by kernels, against the codecs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pagedvid.codecs.channel.kernels.step_sizes import mean_square_step_sizes
from pagedvid.codecs.token.kernels.step_sizes import mean_square_step_sizes as mean_square_token_step_sizes
from pagedvid.errors import ConfigError
from tests.attention.kernels.reference import codec_of
from tests.attention.kernels.scenes import Scene
from tests.codecs.token.kernels.scenes import CODECS, TokenScene, widest

CHANNEL_CODECS = ("int2", "int4", "int8", "int2-pair", "int4-s8", "int2-pair-s8")


def stored(scene: Scene, num_tokens: int) -> Tensor:
    """Pages of tokens whose size grows, so that step sizes differ from page to page."""
    x = scene.randn(scene.num_kv_heads, num_tokens, scene.head_dim) * torch.linspace(0.1, 4, num_tokens)[:, None]
    return scene.store(scene.codecs[0], x)


def check(scene: Scene, num_tokens: int) -> None:
    pages = stored(scene, num_tokens)
    found = mean_square_step_sizes(scene.records, scene.layouts[0], pages, num_tokens)
    codec = codec_of(scene.page, scene.codecs[0])
    expected = codec.mean_square_step_sizes(scene.records[pages.long()], num_tokens)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("codec", CHANNEL_CODECS)
@pytest.mark.parametrize("num_tokens", [1, 17, 300])
def test_of_channel_pages(codec: str, num_tokens: int) -> None:
    check(Scene((codec, codec), 64, num_kv_heads=2), num_tokens)


@pytest.mark.parametrize(("head_dim", "rows", "num_tokens"), [(128, 36, 1560), (128, 19, 4680), (32, 37, 150)])
def test_of_channel_pages_of_other_shapes(head_dim: int, rows: int, num_tokens: int) -> None:
    check(Scene(("int4", "int4"), head_dim, num_kv_heads=1, rows=rows, num_pages=200), num_tokens)


def check_tokens(scene: TokenScene, num_tokens: int) -> None:
    pages = scene.store(num_tokens)
    found = mean_square_token_step_sizes(scene.records, scene.layout, pages, num_tokens)
    expected = scene.codec.mean_square_step_sizes(scene.records[pages.long()], num_tokens)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("head_dim", [32, 64, 128])
@pytest.mark.parametrize("num_tokens", [1, 17, 300])
def test_of_token_pages(codec: str, head_dim: int, num_tokens: int) -> None:
    check_tokens(TokenScene(widest(codec, head_dim), head_dim), num_tokens)


@pytest.mark.parametrize(("rows", "num_tokens"), [(19, 4680), (37, 1560)])
def test_of_token_pages_of_other_lengths(rows: int, num_tokens: int) -> None:
    check_tokens(TokenScene("token2-g64", 128, num_heads=1, rows=rows, num_pages=100), num_tokens)


@pytest.mark.parametrize(("first_token", "num_tokens"), [(0, 20), (1, 1), (60, 70), (129, 40), (290, 10), (17, 283)])
def test_of_some_tokens_of_a_chunk(first_token: int, num_tokens: int) -> None:
    tokens = TokenScene("token4-g32", 64)
    pages = tokens.store(300)
    expected = tokens.codec.mean_square_step_sizes(tokens.records[pages.long()], num_tokens, first_token)
    found = mean_square_token_step_sizes(tokens.records, tokens.layout, pages, num_tokens, first_token)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)

    channels = Scene(("int4", "int4"), 64, num_kv_heads=2)
    pages = stored(channels, 300)
    codec = codec_of(channels.page, "int4")
    expected = codec.mean_square_step_sizes(channels.records[pages.long()], num_tokens, first_token)
    found = mean_square_step_sizes(channels.records, channels.layouts[0], pages, num_tokens, first_token)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)


def test_some_columns_of_a_page_table() -> None:
    scene = TokenScene("token2-g64", 64)
    columns = scene.store(250)[:, :1]
    expected = scene.codec.mean_square_step_sizes(scene.records[columns.long()], 70)
    torch.testing.assert_close(
        mean_square_token_step_sizes(scene.records, scene.layout, columns, 70), expected, rtol=1e-5, atol=0
    )


def test_pages_beyond_four_gibibytes_are_reached() -> None:
    scene = TokenScene("token4-g32", 64)
    pool, far = scene.copy_far(scene.store(100))
    expected = scene.codec.mean_square_step_sizes(pool[far.long()], 100)
    torch.testing.assert_close(mean_square_token_step_sizes(pool, scene.layout, far, 100), expected, rtol=1e-5, atol=0)


def test_channel_pages_beyond_four_gibibytes_are_reached() -> None:
    scene = Scene(("int2", "int2"), 64, num_kv_heads=1)
    pages = stored(scene, 100)
    pool = torch.empty(2_000_000, scene.page.num_bytes, dtype=torch.uint8)
    far = torch.full_like(pages, len(pool) - 1)
    pool[far.long()] = scene.records[pages.long()]
    expected = codec_of(scene.page, "int2").mean_square_step_sizes(pool[far.long()], 100)
    torch.testing.assert_close(mean_square_step_sizes(pool, scene.layouts[0], far, 100), expected, rtol=1e-5, atol=0)


def test_plain_values_have_no_step_sizes() -> None:
    scene = Scene(("bf16", "bf16"), 64, num_kv_heads=1)
    with pytest.raises(ConfigError, match="without step sizes"):
        mean_square_step_sizes(scene.records, scene.layouts[0], stored(scene, 20), 20)

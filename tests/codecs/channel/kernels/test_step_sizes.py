"""Mean square step sizes by kernels, against the codecs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pagedvid.codecs.base import CodecOperations
from pagedvid.codecs.channel.kernels.step_sizes import mean_square_step_sizes
from pagedvid.codecs.token.kernels.step_sizes import mean_square_step_sizes as mean_square_token_step_sizes
from pagedvid.errors import ConfigError
from tests.codecs.channel.kernels.scenes import ChannelScene
from tests.codecs.token.kernels.scenes import CODECS, TokenScene, widest
from tests.devices import DEVICE

CHANNEL_CODECS = ("int2", "int4", "int8", "int2-pair", "int4-s8", "int2-pair-s8")


def check(scene: ChannelScene | TokenScene, pages_SHP: Tensor, num_tokens: int, first_token: int = 0) -> None:
    mean = mean_square_step_sizes if isinstance(scene, ChannelScene) else mean_square_token_step_sizes
    found = mean(scene.records, scene.layout, pages_SHP, num_tokens, first_token)
    expected = CodecOperations(scene.codec, DEVICE).mean_square_step_sizes(
        scene.records, pages_SHP, num_tokens, first_token
    )
    assert found.dtype == torch.float32 and found.shape == (*pages_SHP.shape[:2], scene.head_dim)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("codec", CHANNEL_CODECS)
@pytest.mark.parametrize("num_tokens", [1, 17, 300])
def test_of_channel_pages(codec: str, num_tokens: int) -> None:
    scene = ChannelScene(codec, 64)
    check(scene, scene.store(num_tokens, num_chunks=2), num_tokens)


@pytest.mark.parametrize(("head_dim", "rows", "num_tokens"), [(128, 36, 1560), (128, 19, 4680), (32, 37, 150)])
def test_of_channel_pages_of_other_shapes(head_dim: int, rows: int, num_tokens: int) -> None:
    scene = ChannelScene("int4", head_dim, num_heads=1, rows=rows, num_pages=200)
    check(scene, scene.store(num_tokens), num_tokens)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("head_dim", [32, 64, 128])
@pytest.mark.parametrize("num_tokens", [1, 17, 300])
def test_of_token_pages(codec: str, head_dim: int, num_tokens: int) -> None:
    scene = TokenScene(widest(codec, head_dim), head_dim)
    check(scene, torch.stack([scene.store(num_tokens), scene.store(num_tokens)]), num_tokens)


@pytest.mark.parametrize(("rows", "num_tokens"), [(19, 4680), (37, 1560)])
def test_of_token_pages_of_other_lengths(rows: int, num_tokens: int) -> None:
    scene = TokenScene("token2-g64", 128, num_heads=1, rows=rows, num_pages=100)
    check(scene, scene.store(num_tokens)[None], num_tokens)


@pytest.mark.parametrize(("first_token", "num_tokens"), [(0, 20), (1, 1), (60, 70), (129, 40), (290, 10), (17, 283)])
def test_of_some_tokens_of_a_chunk(first_token: int, num_tokens: int) -> None:
    tokens, channels = TokenScene("token4-g32", 64), ChannelScene("int4", 64)
    check(tokens, tokens.store(300)[None], num_tokens, first_token)
    check(channels, channels.store(300), num_tokens, first_token)


def test_pages_beyond_four_gibibytes_are_reached() -> None:
    scene = TokenScene("token4-g32", 64)
    scene.records, far = scene.copy_far(scene.store(100))
    check(scene, far[None], 100)


def test_channel_pages_beyond_four_gibibytes_are_reached() -> None:
    scene = ChannelScene("int2", 64, num_heads=1)
    pages = scene.store(100)
    pool = torch.empty(2_000_000, scene.page.num_bytes, dtype=torch.uint8)
    far = torch.full_like(pages, len(pool) - 1)
    pool[far.long()] = scene.records[pages.long()]
    scene.records = pool
    check(scene, far, 100)


def test_plain_values_have_no_step_sizes() -> None:
    scene = ChannelScene("bf16", 64, num_heads=1)
    with pytest.raises(ConfigError, match="without step sizes"):
        mean_square_step_sizes(scene.records, scene.layout, scene.store(20), 20)

"""Writing pages, against the codecs: byte for byte where nothing is rotated."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pagedvid.codecs.channel.codec import ChannelCodec
from pagedvid.codecs.channel.kernels.encode import encode as encode_channels
from pagedvid.codecs.channel.kernels.layout import PageLayout
from pagedvid.codecs.packing import short_step_sizes
from pagedvid.codecs.raw.kernels import encode_raw
from pagedvid.codecs.registry import read_codec
from pagedvid.rotary.tables import rotate as rotated
from pagedvid.rotary.tables import to_half_layout
from tests.codecs.channel.kernels.scenes import ChannelScene
from tests.codecs.decoding import decoded

CODECS = ("int2", "int4", "int8", "int2-pair", "int4-s8", "int2-pair-s8")


def encode(
    x_nHD: Tensor, records: Tensor, layout: PageLayout, pages_HP: Tensor, *angles: Any, **options: Any
) -> Tensor:
    """By the kernel of channel codes or that of plain values."""
    return (encode_raw if layout.is_raw else encode_channels)(x_nHD, records, layout, pages_HP, *angles, **options)


def awkward(scene: ChannelScene, num_tokens: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Tokens [n, H, D] with channels of very different size, constant ones, zeros and an outlier."""
    x = scene.randn(num_tokens, scene.num_heads, scene.head_dim) * torch.linspace(1e-3, 4, scene.head_dim)
    x[..., 5], x[..., 6], x[..., 7] = 0.3, 0.0, -2.5
    x[num_tokens // 2, :, 9] = 1e4
    x[..., 11] += 900.0
    return x.to(dtype)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("num_tokens", [1, 17, 150])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_are_those_of_the_codec(codec: str, num_tokens: int, dtype: torch.dtype) -> None:
    scene = ChannelScene(codec, 64, num_heads=2)
    x = awkward(scene, num_tokens, dtype)
    pages = scene.take(read_codec(codec).num_pages(scene.page, num_tokens))
    before = scene.records.clone()
    bad = encode(x, scene.records, scene.layout, pages)
    assert torch.equal(scene.records[pages.long()], scene.encoded(x))
    assert not bad.any()
    before[pages.long()] = scene.records[pages.long()]
    assert torch.equal(before, scene.records)  # no other page was written


@pytest.mark.parametrize(("codec", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
@pytest.mark.parametrize("num_tokens", [1, 50])
def test_raw_bytes(codec: str, dtype: torch.dtype, num_tokens: int) -> None:
    scene = ChannelScene(codec, 64, num_heads=2)
    x = awkward(scene, num_tokens, dtype)
    pages = scene.take(read_codec(codec).num_pages(scene.page, num_tokens))
    assert not encode(x, scene.records, scene.layout, pages).any()
    assert torch.equal(scene.records[pages.long()], scene.encoded(x))


@pytest.mark.parametrize("num_tokens", [1560, 4680])
def test_frames_and_chunks_that_are_no_multiple_of_a_page(num_tokens: int) -> None:
    scene = ChannelScene("int2", 32, num_heads=1)
    x = scene.randn(num_tokens, 1, 32)
    pages = scene.take(read_codec("int2").num_pages(scene.page, num_tokens))
    encode(x, scene.records, scene.layout, pages)
    assert torch.equal(scene.records[pages.long()], scene.encoded(x))


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("rotate", [1, -1])
@pytest.mark.parametrize("pairs", ["half", "interleaved"])
def test_rotated_tokens_stay_within_half_a_step_size(codec: str, rotate: int, pairs: str) -> None:
    """The rotation may round the last bit differently from the reference, so bytes are not compared here."""
    scene = ChannelScene(codec, 64, num_heads=2)
    x, angle = scene.randn(70, 2, 64), scene.randn(70, 32)
    angles = (angle.cos(), angle.sin())
    pages = scene.take(read_codec(codec).num_pages(scene.page, 70))
    encode(x, scene.records, scene.layout, pages, angles, rotate=rotate, pairs=pairs)
    exact = rotated(to_half_layout(x, pairs), angles[0][:, None], rotate * angles[1][:, None])
    stored = decoded(scene.codec, scene.records, pages[None], 70)[0, 0]
    assert isinstance(scene.codec, ChannelCodec)
    step_sizes_HPD = scene.codec.page_step_sizes(scene.records[pages.long()])
    step_size_nHD = step_sizes_HPD[:, torch.arange(70) // read_codec(codec).page_tokens(scene.page)].transpose(0, 1)
    assert ((stored - exact).abs() <= step_size_nHD / 2 + 1e-5).all()


@pytest.mark.filterwarnings("ignore:invalid value encountered")
@pytest.mark.parametrize("codec", ["int2", "fp32"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_values_that_no_page_can_hold_are_flagged_by_head(codec: str, value: float) -> None:
    scene = ChannelScene(codec, 64, num_heads=3)
    x = scene.randn(40, 3, 64)
    x[33, 1, 50] = value
    bad = encode(x, scene.records, scene.layout, scene.take(read_codec(codec).num_pages(scene.page, 40)))
    assert bad.bool().any(1).tolist() == [False, True, False]


def test_values_beyond_fp16_are_flagged() -> None:
    scene = ChannelScene("int8", 64, num_heads=2)
    x = scene.randn(10, 2, 64)
    x[0, 0, 0] = 65504.0
    bad = encode(x, scene.records, scene.layout, scene.take(1))
    assert bad.bool().any(1).tolist() == [True, False]


@pytest.mark.parametrize("codec", ["int2", "bf16"])
def test_channels_of_interleaved_pairs_are_put_in_order(codec: str) -> None:
    scene = ChannelScene(codec, 64, num_heads=2)
    x = scene.randn(40, 2, 64).bfloat16()
    pages = scene.take(read_codec(codec).num_pages(scene.page, 40))
    encode(x, scene.records, scene.layout, pages, pairs="interleaved")
    ordered = to_half_layout(x, "interleaved")
    assert torch.equal(scene.records[pages.long()], scene.encoded(ordered))


def test_short_step_sizes_are_the_smallest_that_suffice() -> None:
    """Ranges around each of the 255 step sizes: just below, at and just above."""
    scene = ChannelScene("int8-s8", 128, num_heads=1, num_pages=20)
    step_sizes = short_step_sizes(scene.records.device)[1:]
    for factor in (1 - 1e-6, 1.0, 1 + 1e-6):
        for part in (factor * step_sizes * 255).clamp(max=6e4).split(128):
            x = torch.zeros(2, 1, 128)
            x[1, 0, : len(part)] = part
            pages = torch.zeros(1, 1, dtype=torch.int32)
            encode(x, scene.records, scene.layout, pages)
            assert torch.equal(scene.records[pages.long()], scene.encoded(x))

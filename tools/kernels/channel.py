"""Kernels that read and write pages of channel codes and of plain numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from kernels.compile import Launch
from pagedvid.codecs.channel.kernels import decode, encode, step_sizes
from pagedvid.codecs.channel.kernels.decode import decode_constants, decode_kernel
from pagedvid.codecs.channel.kernels.encode import encode_constants, encode_kernel
from pagedvid.codecs.channel.kernels.layout import PageLayout
from pagedvid.codecs.channel.spec import ChannelSpec
from pagedvid.codecs.raw import kernels as raw
from pagedvid.codecs.raw.spec import RawSpec
from pagedvid.codecs.registry import read_codec
from pagedvid.codecs.spec import PageFormat
from pagedvid.codecs.triton_decode import HEADS
from pagedvid.rotary.angles import Angles

HEAD_DIM = 128
FRAME_TOKENS = 30 * 52
"""At 480p."""
_EMPTY = torch.empty(0, dtype=torch.float32)
ANGLES = Angles(_EMPTY, _EMPTY, _EMPTY)
SCALES = _EMPTY


def channel_launches() -> Iterator[Launch]:
    """Decoding and encoding, with and without rotation, and decoding to float8."""
    for codec in ("int2", "int4", "int8", "int2-pair-s8"):
        layout = page_layout(codec)
        yield channel_launch(f"{codec}, rotated", layout, ANGLES)
        yield channel_launch(codec, layout, None)
    layout = page_layout("int2")
    yield channel_launch("int2, rotated, float8", layout, ANGLES, SCALES, capability=90, out="*fp8e4nv")
    yield channel_launch("int2, float8", layout, None, SCALES, capability=90, out="*fp8e4nv")
    layout = page_layout("bf16")
    for label, angles in (("bf16, rotated", ANGLES), ("bf16", None)):
        constants = raw.decode_raw_constants(layout, angles, None)
        values = HEADS * raw.BLOCK_TOKENS * HEAD_DIM
        yield Launch.of(label, raw.decode_raw_kernel, constants, raw.DECODE_WARPS, values=values, typed="*bf16")
    for codec in ("int2", "int4", "int8", "int2-pair"):
        layout = page_layout(codec)
        for label, pairs, rotate in ((f"{codec}, un-rotated", "interleaved", -1), (codec, "half", 0)):
            constants = encode_constants(layout, pairs, rotate)
            yield Launch.of(label, encode_kernel, constants, encode.num_warps(layout), **FLOAT32_ANGLES)
    constants = raw.raw_constants(page_layout("bf16"), "interleaved", -1)
    types = {"typed": "*bf16", **FLOAT32_ANGLES}
    yield Launch.of("bf16, un-rotated", raw.encode_raw_kernel, constants, raw.NUM_WARPS, **types)


def channel_launch(
    label: str, layout: PageLayout, angles: Angles | None, scales: torch.Tensor | None = None, **more: Any
) -> Launch:
    """Decoding of pages of channel codes."""
    rotates = angles is not None
    blocks = -(-layout.code_rows // decode.block_rows(layout, rotates=rotates))
    values = HEADS * layout.page_tokens * HEAD_DIM // blocks
    constants, warps = decode_constants(layout, angles, scales), decode.num_warps(layout, rotates=rotates)
    return Launch.of(label, decode_kernel, constants, warps, values=values, **more)


def channel_step_size_launches() -> Iterator[Launch]:
    """Mean square step sizes of a chunk."""
    for codec in ("int2", "int2-pair-s8"):
        constants = step_sizes.channel_constants(page_layout(codec))
        yield Launch.of(codec, step_sizes.mean_step_sizes_kernel, constants, step_sizes.NUM_WARPS)


def page_layout(codec: str) -> PageLayout:
    spec, page = read_codec(codec), PageFormat(HEAD_DIM)
    if isinstance(spec, RawSpec):
        return PageLayout.of_values(page, spec)
    assert isinstance(spec, ChannelSpec)
    return PageLayout.of_channels(page, spec)


FLOAT32_ANGLES = {"cos": "*fp32", "sin": "*fp32"}
"""Keys that arrive rotated are un-rotated by the host's own tables."""

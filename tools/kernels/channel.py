"""Kernels that read and write pages of channel codes and of plain numbers."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from kernels.compile import Launch
from pagedvid.codecs.base import make_codec
from pagedvid.codecs.channel.kernels import decode, encode, step_sizes
from pagedvid.codecs.channel.kernels.decode import decode_constants, decode_kernel
from pagedvid.codecs.channel.kernels.encode import encode_constants, encode_kernel
from pagedvid.codecs.channel.kernels.layout import PageLayout
from pagedvid.codecs.raw.kernels import encode_raw_kernel, raw_constants
from pagedvid.codecs.registry import read_codec
from pagedvid.codecs.spec import PageFormat
from pagedvid.rotary.axis_tables import AngleTables

HEAD_DIM = 128
_EMPTY = torch.empty(0, dtype=torch.float32)
FRAME = AngleTables(_EMPTY, _EMPTY, _EMPTY, 30 * 52, 52)
"""Rotation of keys in frames of 30 x 52 tokens, as at 480p."""


def channel_launches() -> Iterator[Launch]:
    """Decoding and encoding, with and without rotation."""
    for codec in ("int2", "int4", "int8", "int2-pair-s8", "bf16"):
        layout = page_layout(codec)
        for label, angles in ((f"{codec}, rotated", FRAME), (codec, None)):
            constants = decode_constants(layout, angles)
            yield Launch.of(label, decode_kernel, constants, decode.NUM_WARPS, typed=pool_type(layout))
    for codec in ("int2", "int4", "int8", "int2-pair"):
        layout = page_layout(codec)
        for label, pairs, rotate in ((f"{codec}, un-rotated", "interleaved", -1), (codec, "half", 0)):
            constants = encode_constants(layout, pairs, rotate)
            yield Launch.of(label, encode_kernel, constants, encode.num_warps(layout))
    layout = page_layout("bf16")
    constants = raw_constants(layout, "interleaved", -1)
    yield Launch.of("bf16, un-rotated", encode_raw_kernel, constants, encode.NUM_WARPS, typed=pool_type(layout))


def channel_step_size_launches() -> Iterator[Launch]:
    """Mean square step sizes of a chunk."""
    for codec in ("int2", "int2-pair-s8"):
        constants = step_sizes.channel_constants(page_layout(codec))
        yield Launch.of(codec, step_sizes.mean_step_sizes_kernel, constants, step_sizes.NUM_WARPS)


def page_layout(codec: str) -> PageLayout:
    layout = make_codec(read_codec(codec), PageFormat(HEAD_DIM)).kernels(torch.device("cpu")).fused_layout
    assert layout is not None, f"no kernel reads pages of {codec}"
    return layout


def pool_type(layout: PageLayout) -> str:
    """Triton's type of the pool's second view, which has the numbers of the codec."""
    return {torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.float16: "*fp16"}[layout.typed]

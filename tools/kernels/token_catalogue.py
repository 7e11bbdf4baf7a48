"""The kernels that read and write pages of per-token codes, and those that average steps, in the configurations that
real models run; part of catalogue.py.

Shapes: pages of 36 rows of 128 channels, BF16 activations.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from kernels.compiled import Launch
from pagedvid.codecs.channel.kernels import step_sizes as channel_step_sizes
from pagedvid.codecs.channel.kernels.layout import PageLayout
from pagedvid.codecs.channel.spec import ChannelSpec
from pagedvid.codecs.page import PageFormat
from pagedvid.codecs.registry import read_codec
from pagedvid.codecs.token.kernels import decode as token_decode
from pagedvid.codecs.token.kernels import encode as token_encode
from pagedvid.codecs.token.kernels import step_sizes as token_step_sizes
from pagedvid.codecs.token.kernels.layout import TokenLayout
from pagedvid.codecs.token.spec import TokenSpec
from pagedvid.rotary.axis_tables import AngleTables

CODECS = ("token2-g64", "hadamard2-g64", "token4-g32")
PAGE = PageFormat(128)


def token_launches(frame: AngleTables) -> Iterator[Launch]:
    """All configurations; `frame`: what keys rotate by."""
    for codec in CODECS:
        layout = _layout(codec)
        for label, angles in ((codec, None), (f"{codec}, rotated", frame)):
            constants = token_decode.decode_token_constants(layout, angles)
            yield Launch.of(label, token_decode.decode_token_kernel, constants, token_decode.NUM_WARPS)
        for kernel, constants in (
            (token_encode.quantize_token_kernel, token_encode.quantize_constants(layout)),
            (token_encode.pack_token_kernel, token_encode.pack_constants(layout)),
        ):
            yield Launch.of(codec, kernel, constants, token_encode.NUM_WARPS)
        constants = token_step_sizes.token_constants(layout)
        yield Launch.of(codec, token_step_sizes.mean_token_step_sizes_kernel, constants, token_step_sizes.NUM_WARPS)
    for codec in ("int2", "int2-pair-s8"):
        constants = channel_step_sizes.channel_constants(_channel_layout(codec))
        yield Launch.of(codec, channel_step_sizes.mean_step_sizes_kernel, constants, channel_step_sizes.NUM_WARPS)


def _layout(codec: str) -> TokenLayout:
    spec = read_codec(codec)
    assert isinstance(spec, TokenSpec)
    return TokenLayout.of(PAGE, spec, torch.device("cpu"))


def _channel_layout(codec: str) -> PageLayout:
    spec = read_codec(codec)
    assert isinstance(spec, ChannelSpec)
    return PageLayout.of_channels(PAGE, spec)

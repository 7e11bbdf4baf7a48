"""The kernels that read and write pages of per-token codes, and those that average steps, in the configurations that
real models run; part of catalogue.py.

Shapes: pages of 36 rows of 128 channels, BF16 activations.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from pagedvid.attention.kernels import mean_steps, token_decode, token_encode
from pagedvid.attention.kernels.compiled import Launch
from pagedvid.attention.kernels.layout import PageLayout
from pagedvid.attention.kernels.token_layout import TokenLayout
from pagedvid.page_format import PageFormat, read_codec
from pagedvid.quant.hadamard import HadamardCodec
from pagedvid.quant.rope_axes import Turns
from pagedvid.quant.token import TokenCodec

CODECS = ("token2-g64", "hadamard2-g64", "token4-g32")
PAGE = PageFormat(128)


def token_launches(frame: Turns) -> Iterator[Launch]:
    """All configurations; `frame`: what keys turn by."""
    for codec in CODECS:
        layout = _layout(codec)
        for label, turns in ((codec, None), (f"{codec}, turned", frame)):
            constants = token_decode.decode_token_constants(layout, turns)
            yield Launch.of(label, token_decode.decode_token_kernel, constants, token_decode.NUM_WARPS)
        for kernel, constants in (
            (token_encode.quantize_token_kernel, token_encode.quantize_constants(layout)),
            (token_encode.pack_token_kernel, token_encode.pack_constants(layout)),
        ):
            yield Launch.of(codec, kernel, constants, token_encode.NUM_WARPS)
        constants = mean_steps.token_constants(layout)
        yield Launch.of(codec, mean_steps.mean_token_steps_kernel, constants, mean_steps.NUM_WARPS)
    for codec in ("int2", "int2-pair-s8"):
        constants = mean_steps.channel_constants(PageLayout.of(PAGE, codec))
        yield Launch.of(codec, mean_steps.mean_steps_kernel, constants, mean_steps.NUM_WARPS)


def _layout(codec: str) -> TokenLayout:
    kind = HadamardCodec if read_codec(codec).family == "hadamard" else TokenCodec
    return TokenLayout.of(kind(PAGE, codec), torch.device("cpu"))

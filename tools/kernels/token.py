"""Kernels that read and write pages of per-token codes."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from kernels.channel import ANGLES, HEAD_DIM
from kernels.compile import Launch
from pagedvid.codecs.registry import read_codec
from pagedvid.codecs.spec import PageFormat
from pagedvid.codecs.token.kernels import decode, encode, step_sizes
from pagedvid.codecs.token.kernels.layout import TokenLayout
from pagedvid.codecs.token.spec import TokenSpec
from pagedvid.codecs.triton_decode import HEADS

CODECS = ("token2-g64", "hadamard2-g64", "token4-g32")


def token_launches() -> Iterator[Launch]:
    """Decoding, with and without rotation, encoding, and mean square step sizes of a chunk."""
    for codec in CODECS:
        layout = _layout(codec)
        for label, angles in ((codec, None), (f"{codec}, rotated", ANGLES)):
            constants = decode.decode_token_constants(layout, angles, None)
            values = HEADS * decode.BLOCK_TOKENS * HEAD_DIM
            yield Launch.of(label, decode.decode_token_kernel, constants, decode.NUM_WARPS, values=values)
        for kernel, constants in (
            (encode.quantize_token_kernel, encode.quantize_constants(layout)),
            (encode.pack_token_kernel, encode.pack_constants(layout)),
        ):
            yield Launch.of(codec, kernel, constants, encode.NUM_WARPS)
        constants = step_sizes.token_constants(layout)
        yield Launch.of(codec, step_sizes.mean_token_step_sizes_kernel, constants, step_sizes.NUM_WARPS)


def _layout(codec: str) -> TokenLayout:
    spec = read_codec(codec)
    assert isinstance(spec, TokenSpec)
    return TokenLayout.of(PageFormat(HEAD_DIM), spec, torch.device("cpu"))

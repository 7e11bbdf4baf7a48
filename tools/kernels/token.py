"""Kernels that read and write pages of per-token codes."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from kernels.channel import FRAME, HEAD_DIM
from kernels.compile import Launch
from pagedvid.codecs.page import PageFormat, read_codec
from pagedvid.codecs.token.codec import TokenCodec
from pagedvid.codecs.token.hadamard import HadamardCodec
from pagedvid.codecs.token.kernels import decode, encode, step_sizes
from pagedvid.codecs.token.kernels.layout import TokenLayout

CODECS = ("token2-g64", "hadamard2-g64", "token4-g32")


def token_launches() -> Iterator[Launch]:
    """Decoding, with and without rotation, encoding, and mean square step sizes of a chunk."""
    for codec in CODECS:
        layout = _layout(codec)
        for label, rotation in ((codec, None), (f"{codec}, rotated", FRAME)):
            constants = decode.decode_token_constants(layout, rotation)
            yield Launch.of(label, decode.decode_token_kernel, constants, decode.NUM_WARPS)
        for kernel, constants in (
            (encode.quantize_token_kernel, encode.quantize_constants(layout)),
            (encode.pack_token_kernel, encode.pack_constants(layout)),
        ):
            yield Launch.of(codec, kernel, constants, encode.NUM_WARPS)
        constants = step_sizes.token_constants(layout)
        yield Launch.of(codec, step_sizes.mean_token_steps_kernel, constants, step_sizes.NUM_WARPS)


def _layout(codec: str) -> TokenLayout:
    kind = HadamardCodec if read_codec(codec).family == "hadamard" else TokenCodec
    return TokenLayout.of(kind(PageFormat(HEAD_DIM), codec), torch.device("cpu"))

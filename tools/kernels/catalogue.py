"""Every kernel in the configurations that real models run, for compiling them where there is no device.

Shapes: head_dim 128 as in Wan, MAGI-1 and HY-WorldPlay, pages of 36 rows, BF16 activations.
MAGI-1 has 3 query heads per KV head in its 4.5B and 6 in its 24B size, the others 1.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from kernels.compiled import Launch
from kernels.klt_catalogue import klt_launches
from kernels.token_catalogue import token_launches
from pagedvid.attention.kernels import merge
from pagedvid.attention.kernels.merge import corrected_merge_kernel, merge_constants
from pagedvid.attention.kernels.paged_attention import attention_constants, paged_attention_kernel
from pagedvid.attention.kernels.work import ChunkNoise, Noise, Tiling
from pagedvid.codecs.channel.kernels import decode, encode
from pagedvid.codecs.channel.kernels.decode import decode_constants, decode_kernel
from pagedvid.codecs.channel.kernels.encode import encode_constants, encode_kernel, encode_raw_kernel, raw_constants
from pagedvid.codecs.channel.kernels.layout import PageLayout
from pagedvid.codecs.page import PageFormat
from pagedvid.rotary import kernels as rotary_kernels
from pagedvid.rotary.axis_tables import Turns
from pagedvid.rotary.kernels import rotate_constants, rotate_kernel

HEAD_DIM = 128
_EMPTY = torch.empty(0, dtype=torch.float32)
WAN_FRAME = Turns(_EMPTY, _EMPTY, _EMPTY, 30 * 52, 52)
"""What keys turn by: frames of 30 x 52 tokens, as at 480p."""
STEPS = Noise("steps", pairs=True, alpha=torch.ones(1, dtype=torch.float32))
VARIANCE = Noise("variance", pairs=True, alpha=torch.ones(1, dtype=torch.float32))


def launches() -> Iterator[Launch]:
    """All configurations."""
    yield from _attention_launches()
    for codec in ("int2", "int4", "int8", "int2-pair-s8", "bf16"):
        layout = _layout(codec)
        for label, turns in ((f"{codec}, turned", WAN_FRAME), (codec, None)):
            constants = decode_constants(layout, turns)
            yield Launch.of(label, decode_kernel, constants, decode.NUM_WARPS, typed=_typed(layout))
    for codec in ("int2", "int4", "int8", "int2-pair"):
        layout = _layout(codec)
        for label, pairs, turn in ((f"{codec}, turned back", "interleaved", -1), (codec, "half", 0)):
            constants = encode_constants(layout, pairs, turn)
            yield Launch.of(label, encode_kernel, constants, encode.num_warps(layout))
    layout = _layout("bf16")
    constants = raw_constants(layout, "interleaved", -1)
    yield Launch.of("bf16, turned back", encode_raw_kernel, constants, encode.NUM_WARPS, typed=_typed(layout))
    for label, noise in (
        (
            "corrected",
            ChunkNoise(torch.ones(1, dtype=torch.float32), pairs=True, alpha=torch.ones(1, dtype=torch.float32)),
        ),
        ("plain", None),
    ):
        constants = merge_constants(HEAD_DIM, 1, noise)
        yield Launch.of(label, corrected_merge_kernel, constants, merge.NUM_WARPS, total_out="*fp32")
    for pairs in ("half", "interleaved"):
        constants = rotate_constants(HEAD_DIM, pairs, turn=True)
        yield Launch.of(f"{pairs} pairs", rotate_kernel, constants, rotary_kernels.NUM_WARPS)
    yield from klt_launches(WAN_FRAME)
    yield from token_launches(WAN_FRAME)


def _attention_launches() -> Iterator[Launch]:
    cases = (
        ("int2 / int2, steps", "int2", "int2", STEPS, 1),
        ("int2 / int2, steps, 3 heads a group", "int2", "int2", STEPS, 3),
        ("int4 / int2, variance", "int4", "int2", VARIANCE, 1),
        ("int8 / int4, steps", "int8", "int4", STEPS, 1),
        ("int2 / int2, uncorrected", "int2", "int2", None, 1),
        ("bf16 / bf16", "bf16", "bf16", None, 1),
    )
    tiling = Tiling()
    for label, key_codec, value_codec, noise, group in cases:
        layouts = (_layout(key_codec), _layout(value_codec))
        constants = attention_constants(layouts, torch.bfloat16, group, tiling, noise, WAN_FRAME, merge=True)
        types = {"key_typed": _typed(layouts[0]), "value_typed": _typed(layouts[1])}
        yield Launch.of(label, paged_attention_kernel, constants, tiling.num_warps, tiling.num_stages, **types)


def _layout(codec: str) -> PageLayout:
    return PageLayout.of(PageFormat(HEAD_DIM), codec)


def _typed(layout: PageLayout) -> str:
    """The type of the second view of the pool."""
    return {torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.float16: "*fp16"}[layout.typed]

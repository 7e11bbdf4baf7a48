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
from pagedvid.attention.kernels.work import PageBias, Tiling
from pagedvid.codecs.base import make_codec
from pagedvid.codecs.channel.kernels import decode, encode
from pagedvid.codecs.channel.kernels.decode import decode_constants, decode_kernel
from pagedvid.codecs.channel.kernels.encode import encode_constants, encode_kernel
from pagedvid.codecs.channel.kernels.layout import PageLayout
from pagedvid.codecs.page import PageFormat
from pagedvid.codecs.raw.kernels import encode_raw_kernel, raw_constants
from pagedvid.codecs.registry import read_codec
from pagedvid.correction.formula import QuantError
from pagedvid.rotary import kernels as rotary_kernels
from pagedvid.rotary.axis_tables import AngleTables
from pagedvid.rotary.kernels import rotate_constants, rotate_kernel

HEAD_DIM = 128
_EMPTY = torch.empty(0, dtype=torch.float32)
WAN_FRAME = AngleTables(_EMPTY, _EMPTY, _EMPTY, 30 * 52, 52)
"""What keys rotate by: frames of 30 x 52 tokens, as at 480p."""
STEP_SIZES = PageBias("step_sizes", rotates=True, alpha=torch.ones(1, dtype=torch.float32))
VARIANCE = PageBias("variance", rotates=True, alpha=torch.ones(1, dtype=torch.float32))


def launches() -> Iterator[Launch]:
    """All configurations."""
    yield from _attention_launches()
    for codec in ("int2", "int4", "int8", "int2-pair-s8", "bf16"):
        layout = _layout(codec)
        for label, angles in ((f"{codec}, rotated", WAN_FRAME), (codec, None)):
            constants = decode_constants(layout, angles)
            yield Launch.of(label, decode_kernel, constants, decode.NUM_WARPS, typed=_typed(layout))
    for codec in ("int2", "int4", "int8", "int2-pair"):
        layout = _layout(codec)
        for label, pairs, rotate in ((f"{codec}, un-rotated", "interleaved", -1), (codec, "half", 0)):
            constants = encode_constants(layout, pairs, rotate)
            yield Launch.of(label, encode_kernel, constants, encode.num_warps(layout))
    layout = _layout("bf16")
    constants = raw_constants(layout, "interleaved", -1)
    yield Launch.of("bf16, un-rotated", encode_raw_kernel, constants, encode.NUM_WARPS, typed=_typed(layout))
    for label, bias in (
        (
            "corrected",
            QuantError(
                torch.ones(1, dtype=torch.float32), False, rotates=True, alpha=torch.ones(1, dtype=torch.float32)
            ),
        ),
        ("plain", None),
    ):
        constants = merge_constants(HEAD_DIM, 1, bias)
        yield Launch.of(label, corrected_merge_kernel, constants, merge.NUM_WARPS, total_out="*fp32")
    for pairs in ("half", "interleaved"):
        constants = rotate_constants(HEAD_DIM, pairs, rotate=True)
        yield Launch.of(f"{pairs} pairs", rotate_kernel, constants, rotary_kernels.NUM_WARPS)
    yield from klt_launches(WAN_FRAME)
    yield from token_launches(WAN_FRAME)


def _attention_launches() -> Iterator[Launch]:
    cases = (
        ("int2 / int2, steps", "int2", "int2", STEP_SIZES, 1),
        ("int2 / int2, steps, 3 heads a group", "int2", "int2", STEP_SIZES, 3),
        ("int4 / int2, variance", "int4", "int2", VARIANCE, 1),
        ("int8 / int4, steps", "int8", "int4", STEP_SIZES, 1),
        ("int2 / int2, uncorrected", "int2", "int2", None, 1),
        ("bf16 / bf16", "bf16", "bf16", None, 1),
    )
    tiling = Tiling()
    for label, key_codec, value_codec, bias, group in cases:
        layouts = (_layout(key_codec), _layout(value_codec))
        constants = attention_constants(layouts, torch.bfloat16, group, tiling, bias, WAN_FRAME, merge=True)
        types = {"key_typed": _typed(layouts[0]), "value_typed": _typed(layouts[1])}
        yield Launch.of(label, paged_attention_kernel, constants, tiling.num_warps, tiling.num_stages, **types)


def _layout(codec: str) -> PageLayout:
    layout = make_codec(read_codec(codec), PageFormat(HEAD_DIM)).kernels(torch.device("cpu")).fused_layout
    assert layout is not None
    return layout


def _typed(layout: PageLayout) -> str:
    """The type of the second view of the pool."""
    return {torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.float16: "*fp16"}[layout.typed]

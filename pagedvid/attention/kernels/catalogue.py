"""Every kernel in the configurations that real models run, for compiling them where there is no device.

Shapes: head_dim 128 as in Wan, MAGI-1 and HY-WorldPlay, pages of 36 rows, BF16 activations.
MAGI-1 has 3 query heads per KV head in its 4.5B and 6 in its 24B size, the others 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from pagedvid.attention.kernels import decode, encode
from pagedvid.attention.kernels.compiled import Launch
from pagedvid.attention.kernels.decode import decode_constants, decode_kernel
from pagedvid.attention.kernels.encode import encode_constants, encode_kernel, encode_raw_kernel, raw_constants
from pagedvid.attention.kernels.klt_catalogue import klt_launches
from pagedvid.attention.kernels.layout import PageLayout
from pagedvid.attention.kernels.merge import corrected_merge_kernel, merge_constants
from pagedvid.attention.kernels.paged_attention import attention_constants, paged_attention_kernel
from pagedvid.attention.kernels.rotate import rotate_constants, rotate_kernel
from pagedvid.attention.kernels.token_catalogue import token_launches
from pagedvid.attention.kernels.work import ChunkNoise, Noise, Tiling
from pagedvid.page_format import PageFormat
from pagedvid.quant.rope_axes import Turns

HEAD_DIM = 128
NUM_WARPS = 4
WAN_FRAME = Turns(torch.empty(0), torch.empty(0), torch.empty(0), 30 * 52, 52)
"""What keys turn by: frames of 30 x 52 tokens, as at 480p."""
STEPS = Noise("steps", pairs=True, alpha=torch.ones(1))
VARIANCE = Noise("variance", pairs=True, alpha=torch.ones(1))

_TYPES = {
    "*bf16": ("q", "x", "out", "total_out"),
    "*fp32": ("lse", "total_lse", "alpha", "cos", "sin", "step_square", "short_steps"),
    "*u8": ("records", "bad"),
    "*i32": ("pages", "segments", "ranges", "blocks", "axes"),
    "fp32": ("scale",),
}
TYPES = {"variance": "*bf16", **{name: kind for kind, names in _TYPES.items() for name in names}}
"""Of arguments that are not constants; typed views depend on the codec, all others are 32-bit integers."""


def launches() -> Iterator[Launch]:
    """All configurations."""
    yield from _attention_launches()
    for codec in ("int2", "int4", "int8", "int2-pair-s8", "bf16"):
        layout = _layout(codec)
        yield _launch(
            f"{codec}, turned",
            decode_kernel,
            decode_constants(layout, WAN_FRAME),
            layout,
            num_warps=decode.NUM_WARPS,
        )
        yield _launch(codec, decode_kernel, decode_constants(layout, None), layout, num_warps=decode.NUM_WARPS)
    for codec in ("int2", "int4", "int8", "int2-pair"):
        layout = _layout(codec)
        yield _launch(
            f"{codec}, turned back",
            encode_kernel,
            encode_constants(layout, "interleaved", -1),
            layout,
            num_warps=encode.num_warps(layout),
        )
        yield _launch(
            codec, encode_kernel, encode_constants(layout, "half", 0), layout, num_warps=encode.num_warps(layout)
        )
    layout = _layout("bf16")
    yield _launch(
        "bf16, turned back",
        encode_raw_kernel,
        raw_constants(layout, "interleaved", -1),
        layout,
        num_warps=encode.NUM_WARPS,
    )
    for label, noise in (("corrected", ChunkNoise(torch.ones(1), pairs=True, alpha=torch.ones(1))), ("plain", None)):
        constants = merge_constants(HEAD_DIM, 1, noise)
        yield _launch(label, corrected_merge_kernel, constants, layout, types={"total_out": "*fp32"})
    for pairs in ("half", "interleaved"):
        yield _launch(f"{pairs} pairs", rotate_kernel, rotate_constants(HEAD_DIM, pairs, turn=True), layout)
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
        yield _launch(
            label,
            paged_attention_kernel,
            constants,
            *layouts,
            num_warps=tiling.num_warps,
            num_stages=tiling.num_stages,
        )


def _layout(codec: str) -> PageLayout:
    return PageLayout.of(PageFormat(HEAD_DIM), codec)


def _launch(
    label: str,
    kernel: Any,
    constants: dict[str, Any],
    layout: PageLayout,
    value_layout: PageLayout | None = None,
    *,
    num_warps: int = NUM_WARPS,
    num_stages: int = 1,
    types: Mapping[str, str] | None = None,
) -> Launch:
    names = [name for name in kernel.arg_names if name not in constants]
    typed = {"typed": _typed(layout), "key_typed": _typed(layout), "value_typed": _typed(value_layout or layout)}
    chosen = {name: {**TYPES, **typed, **(types or {})}.get(name, "i32") for name in names}
    return Launch(label, kernel, chosen, constants, num_warps, num_stages)


def _typed(layout: PageLayout) -> str:
    return {torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.float16: "*fp16"}[layout.typed]

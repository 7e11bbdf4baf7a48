"""Kernels of attention over pages, of merging partials and of rotary embedding."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from kernels.channel import FRAME, HEAD_DIM, page_layout, pool_type
from kernels.compile import Launch
from pagedvid.attention.kernels import merge
from pagedvid.attention.kernels.merge import corrected_merge_kernel, merge_constants
from pagedvid.attention.kernels.paged_attention import attention_constants, paged_attention_kernel
from pagedvid.attention.kernels.work import PageBias, Tiling
from pagedvid.correction.formula import QuantError
from pagedvid.rotary import kernels as rotary_kernels
from pagedvid.rotary.kernels import rotate_constants, rotate_kernel

ONE = torch.ones(1, dtype=torch.float32)
STEP_SIZES = PageBias("step_sizes", rotates=True, alpha=ONE)
VARIANCE = PageBias("variance", rotates=True, alpha=ONE)


def attention_launches() -> Iterator[Launch]:
    """By codecs of keys and values, source of the correction, and query heads per KV head."""
    cases = (
        ("int2 / int2, step sizes", "int2", "int2", STEP_SIZES, 1),
        ("int2 / int2, step sizes, groups of 3", "int2", "int2", STEP_SIZES, 3),
        ("int4 / int2, variance", "int4", "int2", VARIANCE, 1),
        ("int8 / int4, step sizes", "int8", "int4", STEP_SIZES, 1),
        ("int2 / int2, uncorrected", "int2", "int2", None, 1),
        ("bf16 / bf16", "bf16", "bf16", None, 1),
    )
    tiling = Tiling()
    for label, key_codec, value_codec, bias, group in cases:
        layouts = (page_layout(key_codec), page_layout(value_codec))
        constants = attention_constants(layouts, torch.bfloat16, group, tiling, bias, FRAME, merge=True)
        types = {"key_typed": pool_type(layouts[0]), "value_typed": pool_type(layouts[1])}
        yield Launch.of(label, paged_attention_kernel, constants, tiling.num_warps, tiling.num_stages, **types)


def merge_launches() -> Iterator[Launch]:
    """Merging with and without a correction."""
    quant_error = QuantError(ONE, is_variance=False, rotates=True, alpha=ONE)
    for label, corrected in (("corrected", quant_error), ("plain", None)):
        constants = merge_constants(HEAD_DIM, 1, corrected)
        yield Launch.of(label, corrected_merge_kernel, constants, merge.NUM_WARPS, total_out="*fp32")


def rotate_launches() -> Iterator[Launch]:
    """Rotation of queries and current keys, by the layout of pairs."""
    for pairs in ("half", "interleaved"):
        constants = rotate_constants(HEAD_DIM, pairs, rotate=True)
        yield Launch.of(f"{pairs} pairs", rotate_kernel, constants, rotary_kernels.NUM_WARPS)

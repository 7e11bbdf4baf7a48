"""Shared by the kernels of several codecs: rounding to fp16, the dtype of matrix products, supported head sizes."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from pagedvid.codecs.packing import FP16_MAX

LIMIT = tl.constexpr(FP16_MAX)
ROUND = tl.constexpr(12582912.0)
"""1.5 * 2^23: adding and subtracting it rounds a float32 below 2^22 to an integer, half to even."""
MIN_HEAD_DIM = 32
"""Tensor cores need at least 16 channels in each half."""


@triton.jit
def next_below(half):
    """The next smaller fp16 number."""
    bits = half.to(tl.int16, bitcast=True)
    below = tl.where(bits > 0, bits - 1, tl.where(bits == 0, -32767, bits + 1))
    return below.to(tl.int16).to(tl.float16, bitcast=True)


@triton.jit
def round_down_fp16(x):
    """The largest fp16 number that is not above x."""
    nearest = x.to(tl.float16)
    return tl.where(nearest.to(tl.float32) > x, next_below(nearest), nearest)


@triton.jit
def round_up_fp16(x):
    """The smallest fp16 number that is not below x >= 0."""
    nearest = x.to(tl.float16)
    above = (nearest.to(tl.int16, bitcast=True) + 1).to(tl.int16).to(tl.float16, bitcast=True)
    return tl.where(nearest.to(tl.float32) < x, above, nearest)


def matmul_type(dtype: torch.dtype) -> tl.dtype:
    """The dtype of matrix products. Triton's interpreter has no BF16 arithmetic and multiplies in float32; the operands
    were rounded to BF16 before, so that results are those of a tensor core."""
    return tl.bfloat16 if dtype == torch.bfloat16 and not triton.knobs.runtime.interpret else tl.float32


def head_dim_reasons(head_dim: int) -> list[str]:
    """Why kernels cannot handle this head_dim; empty if they can."""
    if head_dim & (head_dim - 1) or head_dim < MIN_HEAD_DIM:
        return [f"head_dim is {head_dim}; it must be a power of two, {MIN_HEAD_DIM} or more"]
    return []

"""Queries and keys of a step, turned by their rotary angles and put in half layout, in one pass.

Reference: `reference.turned`.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_TOKENS = 32
NUM_WARPS = 4


@triton.jit(do_not_specialize=["num_tokens"])
def rotate_kernel(
    x, cos, sin, out, num_tokens, x_token_stride, x_head_stride, out_token_stride, out_head_stride,
    BLOCK_TOKENS: tl.constexpr, HEAD_DIM: tl.constexpr, INTERLEAVED: tl.constexpr, TURN: tl.constexpr,
):  # fmt: skip
    """See `turned`. Grid (blocks of tokens, heads)."""
    HALF: tl.constexpr = HEAD_DIM // 2
    token = (tl.program_id(0) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)).to(tl.int64)
    mask = (token < num_tokens)[:, None]
    half = tl.arange(0, HALF)[None, :]
    places = x + token[:, None] * x_token_stride + tl.program_id(1).to(tl.int64) * x_head_stride
    if INTERLEAVED:
        first = tl.load(places + 2 * half, mask=mask, other=0.0)
        second = tl.load(places + 2 * half + 1, mask=mask, other=0.0)
    else:
        first = tl.load(places + half, mask=mask, other=0.0)
        second = tl.load(places + HALF + half, mask=mask, other=0.0)
    if TURN:
        cos_tile = tl.load(cos + token[:, None] * HALF + half, mask=mask, other=1.0).to(tl.float32)
        sin_tile = tl.load(sin + token[:, None] * HALF + half, mask=mask, other=0.0).to(tl.float32)
        first, second = first.to(tl.float32), second.to(tl.float32)
        first, second = first * cos_tile - second * sin_tile, second * cos_tile + first * sin_tile
    places = out + token[:, None] * out_token_stride + tl.program_id(1).to(tl.int64) * out_head_stride + half
    tl.store(places, first.to(out.dtype.element_ty), mask=mask)
    tl.store(places + HALF, second.to(out.dtype.element_ty), mask=mask)


def turned(x_THD: Tensor, layout: str, angles: tuple[Tensor, Tensor] | None, out: Tensor | None = None) -> Tensor:
    """x [T, H, D], D contiguous, in half layout and turned by (cos, sin) [T, D/2], contiguous, when given.

    `layout`: which channels of x form a pair, see quant/rotary.py.
    """
    out = torch.empty(x_THD.shape, dtype=x_THD.dtype, device=x_THD.device) if out is None else out
    num_tokens, num_heads, head_dim = x_THD.shape
    cos, sin = angles if angles is not None else (x_THD, x_THD)
    rotate_kernel[(triton.cdiv(num_tokens, BLOCK_TOKENS), num_heads)](
        x_THD, cos, sin, out, num_tokens, *x_THD.stride()[:2], *out.stride()[:2],
        **rotate_constants(head_dim, layout, turn=angles is not None), num_warps=NUM_WARPS,
    )  # fmt: skip
    return out


def rows_contiguous(x: Tensor) -> Tensor:
    """x with its last axis contiguous, as all kernels want it; the others may have any strides."""
    return x if x.stride(-1) == 1 else x.contiguous()


def rotate_constants(head_dim: int, layout: str, *, turn: bool) -> dict[str, Any]:
    """Compile-time arguments of the kernel."""
    return {
        "BLOCK_TOKENS": BLOCK_TOKENS,
        "HEAD_DIM": head_dim,
        "INTERLEAVED": layout == "interleaved",
        "TURN": turn,
    }

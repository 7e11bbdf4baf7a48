"""Rotary embedding on a GPU: puts the queries and keys of a step into half layout and rotates them in one pass.

Reference: `rotary.tables.rotate`.
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
    BLOCK_TOKENS: tl.constexpr, HEAD_DIM: tl.constexpr, INTERLEAVED: tl.constexpr, ROTATE: tl.constexpr,
):  # fmt: skip
    """Each program rotates one block of tokens of one head: grid (blocks of tokens, heads). See `rotated`."""
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
    if ROTATE:
        cos_tile = tl.load(cos + token[:, None] * HALF + half, mask=mask, other=1.0).to(tl.float32)
        sin_tile = tl.load(sin + token[:, None] * HALF + half, mask=mask, other=0.0).to(tl.float32)
        first, second = first.to(tl.float32), second.to(tl.float32)
        first, second = first * cos_tile - second * sin_tile, second * cos_tile + first * sin_tile
    places = out + token[:, None] * out_token_stride + tl.program_id(1).to(tl.int64) * out_head_stride + half
    tl.store(places, first.to(out.dtype.element_ty), mask=mask)
    tl.store(places + HALF, second.to(out.dtype.element_ty), mask=mask)


def rotated(x_THD: Tensor, layout: str, angles: tuple[Tensor, Tensor] | None, out: Tensor | None = None) -> Tensor:
    """x [T, H, D], D contiguous, in half layout and rotated by `angles`, (cos, sin) [T, D/2], contiguous, if given.

    `layout`: which channels of x form a pair; see rotary/tables.py. Written to `out` [T, H, D] if given.
    """
    out = torch.empty(x_THD.shape, dtype=x_THD.dtype, device=x_THD.device) if out is None else out
    num_tokens, num_heads, head_dim = x_THD.shape
    cos, sin = angles if angles is not None else (x_THD, x_THD)
    rotate_kernel[(triton.cdiv(num_tokens, BLOCK_TOKENS), num_heads)](
        x_THD, cos, sin, out, num_tokens, *x_THD.stride()[:2], *out.stride()[:2],
        **rotate_constants(head_dim, layout, rotate=angles is not None), num_warps=NUM_WARPS,
    )  # fmt: skip
    return out


def rows_contiguous(x: Tensor) -> Tensor:
    """x with its last axis contiguous, as all kernels need it; the other axes may have any strides."""
    return x if x.stride(-1) == 1 else x.contiguous()


def rotate_constants(head_dim: int, layout: str, *, rotate: bool) -> dict[str, Any]:
    """Compile-time arguments of the kernel."""
    return {
        "BLOCK_TOKENS": BLOCK_TOKENS,
        "HEAD_DIM": head_dim,
        "INTERLEAVED": layout == "interleaved",
        "ROTATE": rotate,
    }

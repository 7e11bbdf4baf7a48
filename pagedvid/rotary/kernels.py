"""Rotary embedding on a GPU: puts a step's queries, keys and values where attention reads them, in one launch.

Reference: `rotary.tables.arrange`.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

BLOCK_TOKENS = 32
HEADS = 4
"""Heads of one tensor that a program of `arrange` takes, one after the other."""
NUM_WARPS = 4


@triton.jit
def rotate(first, second, cos_tile, sin_tile):
    """Both halves of the channels, rotated."""
    return first * cos_tile - second * sin_tile, second * cos_tile + first * sin_tile


@triton.jit
def arrange_heads(
    x, out, cos, sin, first_token, run, token, mask, first_head, num_heads, x_token_stride, x_head_stride,
    out_run_stride, out_token_stride, out_head_stride,
    HEAD_DIM: tl.constexpr, HEADS: tl.constexpr, INTERLEAVED: tl.constexpr, ROTATE: tl.constexpr,
):  # fmt: skip
    """HEADS heads from `first_head` on of the tokens [N] of one run; the angles of the tokens are loaded once."""
    HALF: tl.constexpr = HEAD_DIM // 2
    half = tl.arange(0, HALF)[None, :]
    is_token = mask[:, None]
    packed = first_token + token
    if ROTATE:
        cos_tile = tl.load(cos + packed[:, None] * HALF + half, mask=is_token, other=1.0).to(tl.float32)
        sin_tile = tl.load(sin + packed[:, None] * HALF + half, mask=is_token, other=0.0).to(tl.float32)
    x_rows = (x + packed * x_token_stride)[:, None]
    out_rows = (out + run * out_run_stride + token * out_token_stride)[:, None]
    for number in range(first_head, tl.minimum(first_head + HEADS, num_heads)):
        head = tl.cast(number, tl.int64)
        if INTERLEAVED:
            places = x_rows + head * x_head_stride + tl.arange(0, HEAD_DIM)[None, :]
            tile = tl.load(places, mask=is_token, other=0.0)
            first, second = tl.split(tl.reshape(tile, [tile.shape[0], HALF, 2]))
        else:
            first = tl.load(x_rows + head * x_head_stride + half, mask=is_token, other=0.0)
            second = tl.load(x_rows + head * x_head_stride + HALF + half, mask=is_token, other=0.0)
        if ROTATE:
            first, second = rotate(first.to(tl.float32), second.to(tl.float32), cos_tile, sin_tile)
        places = out_rows + head * out_head_stride + half
        tl.store(places, first.to(out.dtype.element_ty), mask=is_token)
        tl.store(places + HALF, second.to(out.dtype.element_ty), mask=is_token)


@triton.jit(
    do_not_specialize=["num_tokens", "num_q_heads", "num_k_heads", "num_v_heads"],
    do_not_specialize_on_alignment=["starts"],
)
def arrange_kernel(
    q, k, v, cos, sin, starts, q_out, k_out, v_out, num_tokens, num_q_heads, num_k_heads, num_v_heads,
    q_token_stride, q_head_stride, k_token_stride, k_head_stride, v_token_stride, v_head_stride,
    q_out_run_stride, q_out_token_stride, q_out_head_stride, k_out_run_stride, k_out_token_stride, k_out_head_stride,
    v_out_run_stride, v_out_token_stride, v_out_head_stride,
    HEAD_DIM: tl.constexpr, BLOCK_TOKENS: tl.constexpr, HEADS: tl.constexpr, INTERLEAVED: tl.constexpr,
    ROTATE: tl.constexpr,
):  # fmt: skip
    """Grid (blocks of tokens, runs, groups of HEADS heads: of q, then of k, then of v). See `arrange`."""
    run = tl.program_id(1).to(tl.int64)
    token = (tl.program_id(0) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)).to(tl.int64)
    mask = token < num_tokens
    first_token = tl.load(starts + run).to(tl.int64)
    k_group = tl.program_id(2) - tl.cdiv(num_q_heads, HEADS)
    v_group = k_group - tl.cdiv(num_k_heads, HEADS)
    if k_group < 0:
        arrange_heads(
            q, q_out, cos, sin, first_token, run, token, mask, tl.program_id(2) * HEADS, num_q_heads, q_token_stride,
            q_head_stride, q_out_run_stride, q_out_token_stride, q_out_head_stride, HEAD_DIM, HEADS, INTERLEAVED,
            ROTATE,
        )  # fmt: skip
    elif v_group < 0:
        arrange_heads(
            k, k_out, cos, sin, first_token, run, token, mask, k_group * HEADS, num_k_heads, k_token_stride,
            k_head_stride, k_out_run_stride, k_out_token_stride, k_out_head_stride, HEAD_DIM, HEADS, INTERLEAVED,
            ROTATE,
        )  # fmt: skip
    else:
        arrange_heads(
            v, v_out, cos, sin, first_token, run, token, mask, v_group * HEADS, num_v_heads, v_token_stride,
            v_head_stride, v_out_run_stride, v_out_token_stride, v_out_head_stride, HEAD_DIM, HEADS, False, False,
        )  # fmt: skip


def arrange(
    q_THD: Tensor | None,
    k_THD: Tensor,
    v_THD: Tensor | None,
    starts_M: Tensor,
    num_tokens: int,
    layout: str,
    angles: tuple[Tensor, Tensor] | None,
    q_out: Tensor | None,
    k_out: Tensor,
    v_out: Tensor | None,
) -> None:
    """As `pagedvid.rotary.tables.arrange`, in one launch. Inputs have D innermost; angles are contiguous."""
    cos, sin = (k_THD, k_THD) if angles is None else angles
    q, q_to, num_q_heads = (k_THD, k_out, 0) if q_THD is None or q_out is None else (q_THD, q_out, q_THD.shape[1])
    v, v_to, num_v_heads = (k_THD, k_out, 0) if v_THD is None or v_out is None else (v_THD, v_out, v_THD.shape[1])
    num_k_heads, head_dim = k_THD.shape[1:]
    groups = sum(-(-count // HEADS) for count in (num_q_heads, num_k_heads, num_v_heads))
    arrange_kernel[(-(-num_tokens // BLOCK_TOKENS), len(starts_M), groups)](
        q, k_THD, v, cos, sin, starts_M, q_to, k_out, v_to, num_tokens, num_q_heads, num_k_heads, num_v_heads,
        *row_strides(q), *row_strides(k_THD), *row_strides(v), *row_strides(q_to), *row_strides(k_out),
        *row_strides(v_to), **arrange_constants(head_dim, layout, rotate=angles is not None), num_warps=NUM_WARPS,
    )  # fmt: skip


def row_strides(x: Tensor) -> list[int]:
    """The strides of all axes of x but the last; 0 along axes of length 1, where a stride means nothing.

    Otherwise they would be multiples of 16 at one call and not at the next, and a kernel would be compiled again.
    """
    return [stride if length > 1 else 0 for stride, length in zip(x.stride()[:-1], x.shape[:-1], strict=True)]


def arrange_constants(head_dim: int, layout: str, *, rotate: bool) -> dict[str, Any]:
    """Compile-time arguments of the kernel."""
    return {
        "HEAD_DIM": head_dim,
        "BLOCK_TOKENS": BLOCK_TOKENS,
        "HEADS": HEADS,
        "INTERLEAVED": layout == "interleaved",
        "ROTATE": rotate,
    }

"""Adds one chunk's dense partial to the running total: lse - b, then the merge by log-sum-exp, in one pass.

b takes one squared step size per head and channel, because a call merges a whole chunk (correction/formula.py): the
mean over the chunk's tokens, or 12 times a change of variance. Reference: tests/attention/kernels/reference.py.

Also what every kernel does with partials in memory: rows of queries or outputs, and the merge itself.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from pagedvid.correction.formula import QuantError
from pagedvid.correction.kernels import exact_part, is_hot

BLOCK_ROWS = 64
NUM_WARPS = 4


@triton.jit
def load_rows(rows, channel, mask):
    """Values [M, channels] at the row pointers `rows` [M]; zero where `mask` [M] is not set."""
    return tl.load(rows[:, None] + channel[None, :], mask=mask[:, None], other=0.0)


@triton.jit
def merge_rows(out, lse, other_out, other_lse):
    """Merged (out [M, D], lse [M]) of two partials in canonical form, natural log; see attention/partial.merge."""
    largest = tl.maximum(lse, other_lse)
    # If both are empty, a finite anchor keeps -inf - (-inf) from giving NaN.
    anchor = tl.where(largest == float("-inf"), 0.0, largest)
    weight = tl.exp(lse - anchor)
    other_weight = tl.exp(other_lse - anchor)
    total = weight + other_weight
    divisor = tl.where(total > 0.0, total, 1.0)
    merged = (out * weight[:, None] + other_out * other_weight[:, None]) / divisor[:, None]
    return merged, tl.where(total > 0.0, anchor + tl.log(divisor), float("-inf"))


@triton.jit
def write_rows(out_rows, lse_rows, out, lse, mask, HEAD_DIM: tl.constexpr, MERGE: tl.constexpr):
    """Writes a partial (out [M, D], lse [M]) to the row pointers `out_rows` and `lse_rows` [M] where `mask` is set.

    MERGE: merges it with the partial already there.
    """
    channel = tl.arange(0, HEAD_DIM)
    if MERGE:
        old_out = load_rows(out_rows, channel, mask).to(tl.float32)
        out, lse = merge_rows(out, lse, old_out, tl.load(lse_rows, mask=mask, other=float("-inf")))
    tl.store(out_rows[:, None] + channel[None, :], out.to(out_rows.dtype.element_ty), mask=mask[:, None])
    tl.store(lse_rows, lse, mask=mask)


@triton.jit(
    do_not_specialize=["num_rows", "total_lse_head_stride", "lse_head_stride"],
    do_not_specialize_on_alignment=["alpha"],
)
def corrected_merge_kernel(
    total_out, total_lse, out, lse, q, square_step_size, alpha, num_rows, scale, q_token_stride, q_head_stride,
    total_token_stride, total_head_stride, total_lse_token_stride, total_lse_head_stride, out_token_stride,
    out_head_stride, lse_token_stride, lse_head_stride,
    GROUP: tl.constexpr, BLOCK_ROWS: tl.constexpr, HEAD_DIM: tl.constexpr, BIAS: tl.constexpr, ALPHA: tl.constexpr,
    ROTATES: tl.constexpr,
):  # fmt: skip
    """Grid (KV heads, blocks of rows). ROTATES: keys are rotated after storage."""
    HALF: tl.constexpr = HEAD_DIM // 2
    head = tl.program_id(0)
    row = tl.program_id(1) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    is_query = row < num_rows
    token = (row // GROUP).to(tl.int64)
    query_head = head * GROUP + row % GROUP
    rows_lse = tl.load(
        lse + token * lse_token_stride + query_head * lse_head_stride, mask=is_query, other=float("-inf")
    )
    if BIAS:
        half = tl.arange(0, HALF)
        first = tl.load(square_step_size + head * HEAD_DIM + half[None, :]).to(tl.float32)
        second = tl.load(square_step_size + head * HEAD_DIM + HALF + half[None, :]).to(tl.float32)
        q_rows = q + token * q_token_stride + query_head * q_head_stride
        square = load_rows(q_rows, half, is_query).to(tl.float32)
        other_square = load_rows(q_rows, HALF + half, is_query).to(tl.float32)
        square *= square
        other_square *= other_square
        if ROTATES:
            square = (square + other_square) * 0.5
            other_square = square
        quarter = scale * scale / 4.0
        hot = is_hot(square, first, quarter)
        other_hot = is_hot(other_square, second, quarter)
        cold = square * tl.where(hot, 0.0, first) + other_square * tl.where(other_hot, 0.0, second)
        b = (tl.sum(cold, axis=1) * (quarter / 6.0))[:, None]
        b = exact_part(b, square, tl.where(hot, first, 0.0), quarter, HALF)
        b = exact_part(b, other_square, tl.where(other_hot, second, 0.0), quarter, HALF)
        bias = tl.sum(b, axis=1)
        if ALPHA:
            bias *= tl.load(alpha + head)
        rows_lse -= bias
    full = tl.arange(0, HEAD_DIM)
    rows_out = load_rows(out + token * out_token_stride + query_head * out_head_stride, full, is_query)
    write_rows(
        total_out + token * total_token_stride + query_head * total_head_stride,
        total_lse + token * total_lse_token_stride + query_head * total_lse_head_stride,
        rows_out.to(tl.float32), rows_lse, is_query, HEAD_DIM, True,
    )  # fmt: skip


def corrected_merge(
    total: tuple[Tensor, Tensor],
    partial: tuple[Tensor, Tensor],
    q_THD: Tensor,
    scale: float,
    error: QuantError | None,
) -> None:
    """Merges `partial` over the keys of one chunk into `total`; both are (out [T, Hq, D], lse [T, Hq]).

    `q_THD`: queries as `QuantError.along` returns them, float32 or bfloat16, D contiguous. `error`: of the chunk's
    keys; None: nothing is corrected.
    """
    (total_out, total_lse), (out, lse) = total, partial
    num_queries, num_heads, head_dim = total_out.shape
    group = 1 if error is None else num_heads // len(error.square)
    square = total_lse if error is None else error.square
    alpha = total_lse if error is None or error.alpha is None else error.alpha
    corrected_merge_kernel[(num_heads // group, triton.cdiv(num_queries * group, BLOCK_ROWS))](
        total_out, total_lse, out, lse, q_THD, square, alpha, num_queries * group, scale, *q_THD.stride()[:2],
        *total_out.stride()[:2], *total_lse.stride(), *out.stride()[:2], *lse.stride(),
        **merge_constants(head_dim, group, error), num_warps=NUM_WARPS,
    )  # fmt: skip


def merge(total: tuple[Tensor, Tensor], partial: tuple[Tensor, Tensor]) -> None:
    """Merges `partial`, over keys that need no correction, into `total`; both are (out [T, Hq, D], lse [T, Hq])."""
    corrected_merge(total, partial, partial[0], 0.0, None)


def merge_constants(head_dim: int, group: int, error: QuantError | None) -> dict[str, Any]:
    """Compile-time arguments of the kernel."""
    return {
        "GROUP": group,
        "BLOCK_ROWS": BLOCK_ROWS,
        "HEAD_DIM": head_dim,
        "BIAS": error is not None,
        "ALPHA": error is not None and error.alpha is not None,
        "ROTATES": error is not None and error.rotates,
    }

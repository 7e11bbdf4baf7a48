"""Adds one chunk's dense partial to the running total: lse - b, then the merge by log-sum-exp, in one pass.

Reference: `reference.corrected_merge`. b takes the chunk's mean of step^2 over its tokens, as a backend that handles a
whole chunk per call does (quant/correction.py); the mean is taken here from the pages' steps.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from pagedvid.attention.kernels.layout import PageLayout
from pagedvid.attention.kernels.noise import exact_part, is_hot
from pagedvid.attention.kernels.partials import load_rows, merge_rows
from pagedvid.attention.kernels.tokens import load_steps
from pagedvid.attention.kernels.work import NOISE_MODES, Noise

BLOCK_ROWS = 64
NUM_WARPS = 4


@triton.jit
def mean_step_square(
    records, typed, pages, num_tokens, channel, HEAD_DIM: tl.constexpr, PAGE_BYTES: tl.constexpr,
    PAGE_TOKENS: tl.constexpr, CODE_ROWS: tl.constexpr, PAIR_STEPS: tl.constexpr, SHORT_STEPS: tl.constexpr,
):  # fmt: skip
    """Mean of step^2 over the tokens, float32 like `channel` [1, C]."""
    total = tl.zeros(channel.shape, tl.float32)
    for first in range(0, num_tokens, PAGE_TOKENS):
        page = tl.load(pages + first // PAGE_TOKENS).to(tl.int64)
        step = load_steps(records, typed, page, channel, HEAD_DIM, PAGE_BYTES, CODE_ROWS, PAIR_STEPS, SHORT_STEPS)
        total += step * step * tl.minimum(num_tokens - first, PAGE_TOKENS).to(tl.float32)
    return total / num_tokens


@triton.jit(do_not_specialize=["num_rows", "num_tokens", "pages_per_head"])
def corrected_merge_kernel(
    total_out, total_lse, out, lse, q, records, typed, pages, alpha, variance, num_rows, num_tokens, pages_per_head,
    scale, q_token_stride, q_head_stride, total_token_stride, total_head_stride, total_lse_token_stride,
    total_lse_head_stride, out_token_stride, out_head_stride, lse_token_stride, lse_head_stride,
    GROUP: tl.constexpr, BLOCK_ROWS: tl.constexpr, HEAD_DIM: tl.constexpr, PAGE_BYTES: tl.constexpr,
    NOISE: tl.constexpr, ALPHA: tl.constexpr, PAIRS: tl.constexpr, BITS: tl.constexpr, PAGE_TOKENS: tl.constexpr,
    CODE_ROWS: tl.constexpr, PAIR_STEPS: tl.constexpr, SHORT_STEPS: tl.constexpr,
):  # fmt: skip
    """See `corrected_merge`. Grid (KV heads, blocks of rows)."""
    HALF: tl.constexpr = HEAD_DIM // 2
    head = tl.program_id(0)
    row = tl.program_id(1) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    is_query = row < num_rows
    token = (row // GROUP).to(tl.int64)
    query_head = head * GROUP + row % GROUP
    rows_lse = tl.load(
        lse + token * lse_token_stride + query_head * lse_head_stride, mask=is_query, other=float("-inf")
    )
    if NOISE > 0:
        half = tl.arange(0, HALF)
        channel = half[None, :]
        if NOISE == 1:
            keys = pages + head * pages_per_head
            first = mean_step_square(
                records, typed, keys, num_tokens, channel, HEAD_DIM, PAGE_BYTES, PAGE_TOKENS, CODE_ROWS, PAIR_STEPS,
                SHORT_STEPS,
            )  # fmt: skip
            second = mean_step_square(
                records, typed, keys, num_tokens, HALF + channel, HEAD_DIM, PAGE_BYTES, PAGE_TOKENS, CODE_ROWS,
                PAIR_STEPS, SHORT_STEPS,
            )  # fmt: skip
        else:  # step^2 = 12 Var
            first = 12.0 * tl.load(variance + head * HEAD_DIM + channel).to(tl.float32)
            second = 12.0 * tl.load(variance + head * HEAD_DIM + HALF + channel).to(tl.float32)
        q_rows = q + token * q_token_stride + query_head * q_head_stride
        square = load_rows(q_rows, half, is_query).to(tl.float32)
        other_square = load_rows(q_rows, HALF + half, is_query).to(tl.float32)
        square *= square
        other_square *= other_square
        if PAIRS:
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
    total_rows = total_out + token * total_token_stride + query_head * total_head_stride
    total_lse_rows = total_lse + token * total_lse_token_stride + query_head * total_lse_head_stride
    merged, merged_lse = merge_rows(
        rows_out.to(tl.float32), rows_lse, load_rows(total_rows, full, is_query).to(tl.float32),
        tl.load(total_lse_rows, mask=is_query, other=float("-inf")),
    )  # fmt: skip
    tl.store(total_rows[:, None] + full[None, :], merged.to(total_out.dtype.element_ty), mask=is_query[:, None])
    tl.store(total_lse_rows, merged_lse, mask=is_query)


def corrected_merge(
    total: tuple[Tensor, Tensor],
    partial: tuple[Tensor, Tensor],
    q_THD: Tensor,
    records: Tensor,
    layout: PageLayout,
    pages_HP: Tensor,
    num_tokens: int,
    scale: float,
    noise: Noise | None = None,
) -> None:
    """Merges `partial` over one chunk of `num_tokens` keys into `total`; both are (out [T, Hq, D], lse [T, Hq]).

    `pages_HP` int32 [H, P]: the chunk's key pages; `noise`: alpha [H] and variance [H, D] of this chunk.
    """
    (total_out, total_lse), (out, lse) = total, partial
    num_heads, num_queries = len(pages_HP), len(q_THD)
    group = q_THD.shape[1] // num_heads
    if layout.is_raw:  # never corrected
        noise = None
    corrected_merge_kernel[(num_heads, triton.cdiv(num_queries * group, BLOCK_ROWS))](
        total_out, total_lse, out, lse, q_THD, records, layout.view(records), pages_HP,
        records if noise is None or noise.alpha is None else noise.alpha,
        records if noise is None or noise.variance is None else noise.variance,
        num_queries * group, num_tokens, pages_HP.stride(0), scale, *q_THD.stride()[:2], *total_out.stride()[:2],
        *total_lse.stride(), *out.stride()[:2], *lse.stride(),
        **merge_constants(layout, group, noise),
        num_warps=NUM_WARPS,
    )  # fmt: skip


def merge_constants(layout: PageLayout, group: int, noise: Noise | None) -> dict[str, Any]:
    """Compile-time arguments of the kernel."""
    return {
        "GROUP": group,
        "BLOCK_ROWS": BLOCK_ROWS,
        "HEAD_DIM": layout.head_dim,
        "PAGE_BYTES": layout.page_bytes,
        "NOISE": NOISE_MODES["off" if noise is None else noise.mode],
        "ALPHA": noise is not None and noise.alpha is not None,
        "PAIRS": noise is not None and noise.pairs,
        **layout.constants(""),
    }


def merge(total: tuple[Tensor, Tensor], partial: tuple[Tensor, Tensor]) -> None:
    """Merges `partial` over keys that need no correction into `total`; both are (out [T, Hq, D], lse [T, Hq])."""
    (total_out, total_lse), (out, lse) = total, partial
    num_queries, num_heads, head_dim = total_out.shape
    unused = total_lse
    raw = PageLayout(head_dim, 0, 1, 32, 1, False, False, False)
    corrected_merge_kernel[(num_heads, triton.cdiv(num_queries, BLOCK_ROWS))](
        total_out, total_lse, out, lse, out, unused, unused, unused, unused, unused,
        num_queries, 0, 0, 0.0, *out.stride()[:2], *total_out.stride()[:2], *total_lse.stride(), *out.stride()[:2],
        *lse.stride(), **merge_constants(raw, 1, None), num_warps=NUM_WARPS,
    )  # fmt: skip

"""Device functions for partials in memory: rows of queries or outputs, and the merge by log-sum-exp."""

from __future__ import annotations

import triton
import triton.language as tl


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

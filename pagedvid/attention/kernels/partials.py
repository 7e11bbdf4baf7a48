"""Device functions for partials in memory: rows of queries or outputs, and the merge by log-sum-exp."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_rows(rows, channel, mask):
    """[M, channels] behind the pointers `rows` [M], zero where `mask` [M] is not set."""
    return tl.load(rows[:, None] + channel[None, :], mask=mask[:, None], other=0.0)


@triton.jit
def merge_rows(out, lse, other_out, other_lse):
    """Merged (out [M, D], lse [M]) of two partials in canonical form, natural log; see attention/partial.merge."""
    largest = tl.maximum(lse, other_lse)
    # Two empty partials: any finite number in the place of -inf keeps the differences defined.
    anchor = tl.where(largest == float("-inf"), 0.0, largest)
    weight = tl.exp(lse - anchor)
    other_weight = tl.exp(other_lse - anchor)
    total = weight + other_weight
    divisor = tl.where(total > 0.0, total, 1.0)
    merged = (out * weight[:, None] + other_out * other_weight[:, None]) / divisor[:, None]
    return merged, tl.where(total > 0.0, anchor + tl.log(divisor), float("-inf"))

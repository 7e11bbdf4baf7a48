"""PyTorch's own flash kernel for the CPU, called directly because it returns the log-sum-exp.

Axes: E ranges, h KV heads, M query rows, n keys, D head_dim.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pagedvid.attention.partial import Partial

LARGE_BLOCKS_FROM_ROWS = 768
"""The CPU kernel works on blocks of 256 rows from this many rows on, on smaller blocks below."""


def flash_partial(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Partial:
    """Attention of q [E, h, M, D] over k and v [E, h, n, D], with its log-sum-exp."""
    # The operator takes the last axis to be innermost in memory; called directly, nothing checks that it is.
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    parts = row_parts(q, torch.get_num_threads())
    if parts > 1:
        q = q[0].unflatten(1, (parts, -1))
        k, v = (x[0].unsqueeze(1).expand(-1, parts, -1, -1) for x in (k, v))
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, scale=scale)
    if parts > 1:
        out, lse = out.flatten(1, 2).unsqueeze(0), lse.flatten(1, 2).unsqueeze(0)
    return Partial(out.float(), lse)


def row_parts(q: Tensor, num_threads: int) -> int:
    """Into how many parts the rows of q [E, h, M, D] are cut, so that the kernel gives all threads the same work.

    It deals out blocks of 256 rows: of one head with 4680 rows, one of two threads would get 2560. Short parts would
    get smaller, slower blocks.
    """
    num_ranges, num_heads, num_rows, _ = q.shape
    is_even = num_ranges * num_heads % num_threads == 0
    can_be_cut = num_ranges == 1 and num_rows % num_threads == 0 and num_rows // num_threads >= LARGE_BLOCKS_FROM_ROWS
    return num_threads if can_be_cut and not is_even else 1

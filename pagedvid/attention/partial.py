"""PyTorch's flash kernel for the CPU, which returns a partial attention result.

A partial is attention over a subset of the keys: its normalised output and the log-sum-exp of its scores. Canonical
form: `out` float32 [..., T, D], `lse` float32 [..., T], natural log, scale included; no keys at all is (0, -inf). Every
backend converts to it at its edge (FlashAttention 2 returns +inf for no keys, FlashInfer base 2, xformers [B, H, M]).

Axes: E ranges, h KV heads, M query rows, n keys, D head_dim.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

LARGE_BLOCKS_FROM_ROWS = 768
"""From this many rows on, the CPU's flash kernel works on blocks of 256 rows; with fewer, on smaller blocks."""


@dataclass
class Partial:
    """Attention over some of the keys, canonical form."""

    out: Tensor
    lse: Tensor


def flash_partial(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Partial:
    """Attention of q [E, h, M, D] over k and v [E, h, n, D] by PyTorch's flash kernel for the CPU.

    It is called directly because PyTorch's public functions do not return the log-sum-exp.
    """
    # The kernel assumes without a check that the last axis is contiguous.
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
    """Into how many parts to cut the rows of q [E, h, M, D], so that the kernel gives all threads equal work.

    It deals out blocks of 256 rows: from one head with 4680 rows, one of two threads would get 2560. Rows are not cut
    into parts so short that the kernel would use smaller, slower blocks.
    """
    num_ranges, num_heads, num_rows, _ = q.shape
    is_even = num_ranges * num_heads % num_threads == 0
    can_be_cut = num_ranges == 1 and num_rows % num_threads == 0 and num_rows // num_threads >= LARGE_BLOCKS_FROM_ROWS
    return num_threads if can_be_cut and not is_even else 1

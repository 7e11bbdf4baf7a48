"""Mean of step_size^2 over the tokens of a chunk, in pages of per-token codes; see correction/formula.py.

Reference: `TokenCodec.mean_square_step_sizes`.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from pagedvid.codecs.token.kernels.layout import TokenLayout

NUM_WARPS = 4
BLOCK_STEP_SIZES = 2048
"""Step sizes that a program loads at once: 16 per thread."""


@triton.jit(do_not_specialize=["first_token", "num_tokens", "pages_per_head"], do_not_specialize_on_alignment=["pages"])
def mean_token_step_sizes_kernel(
    typed, pages, mean, first_token, num_tokens, pages_per_head,
    BLOCK_TOKENS: tl.constexpr, HEAD_DIM: tl.constexpr, PAGE_BYTES: tl.constexpr, PAGE_TOKENS: tl.constexpr,
    BITS: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Each program averages the tokens of one head of one chunk: grid (chunks * heads)."""
    NUM_GROUPS: tl.constexpr = HEAD_DIM // GROUP
    FIRST_STEP_SIZE: tl.constexpr = PAGE_TOKENS * HEAD_DIM * BITS // 16
    head = tl.program_id(0)
    pages += head * pages_per_head
    group = tl.arange(0, NUM_GROUPS)
    total = tl.zeros([BLOCK_TOKENS, NUM_GROUPS], tl.float32)
    end = first_token + num_tokens
    for first in range(first_token, end, BLOCK_TOKENS):
        token = first + tl.arange(0, BLOCK_TOKENS)
        is_token = token < end
        page = tl.load(pages + token // PAGE_TOKENS, mask=is_token, other=0).to(tl.int64)
        first_step_size = page * (PAGE_BYTES // 2) + FIRST_STEP_SIZE + token % PAGE_TOKENS * NUM_GROUPS
        step_sizes = typed + first_step_size[:, None] + group[None, :]
        step_size = tl.load(step_sizes, mask=is_token[:, None], other=0.0).to(tl.float32)
        total += step_size * step_size
    mean_of_group = (tl.sum(total, axis=0) / num_tokens)[:, None]
    channel = group[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    tl.store(mean + head * HEAD_DIM + channel, tl.broadcast_to(mean_of_group, [NUM_GROUPS, GROUP]))


def mean_square_step_sizes(
    records: Tensor, layout: TokenLayout, pages_SHP: Tensor, num_tokens: int, first_token: int = 0
) -> Tensor:
    """`PageKernels.mean_square_step_sizes` for pages of per-token codes."""
    num_chunks, num_heads, pages_per_head = pages_SHP.shape
    mean_SHD = torch.empty(num_chunks, num_heads, layout.head_dim, dtype=torch.float32, device=records.device)
    mean_token_step_sizes_kernel[(num_chunks * num_heads,)](
        layout.view(records), pages_SHP, mean_SHD, first_token, num_tokens, pages_per_head,
        **token_constants(layout), num_warps=NUM_WARPS,
    )  # fmt: skip
    return mean_SHD


def token_constants(layout: TokenLayout) -> dict[str, Any]:
    """Compile-time arguments of the kernel."""
    return {"BLOCK_TOKENS": BLOCK_STEP_SIZES // layout.num_groups, **layout.constants()}

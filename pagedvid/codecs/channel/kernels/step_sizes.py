"""Mean of step_size^2 over the tokens of a chunk, for the correction of its attention (correction/formula.py).

Reference: `ChannelCodec.mean_square_step_sizes`. Step sizes are few, so one program handles a head of a chunk. A page
can be read only after its id, so the ids and then the step sizes of many pages are loaded together, to wait for memory
less often.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from pagedvid.codecs.channel.kernels.layout import PageLayout
from pagedvid.codecs.channel.kernels.metadata import load_step_sizes
from pagedvid.errors import ConfigError

NUM_WARPS = 4
BLOCK_STEP_SIZES = 2048
"""Step sizes that a program loads at once: 16 per thread."""


@triton.jit(do_not_specialize=["first_token", "num_tokens", "pages_per_head"], do_not_specialize_on_alignment=["pages"])
def mean_step_sizes_kernel(
    records, typed, pages, mean, first_token, num_tokens, pages_per_head,
    BLOCK_PAGES: tl.constexpr, HEAD_DIM: tl.constexpr, PAGE_BYTES: tl.constexpr, PAGE_TOKENS: tl.constexpr,
    CODE_ROWS: tl.constexpr, PAIR_STEP_SIZES: tl.constexpr, SHORT_STEP_SIZES: tl.constexpr,
):  # fmt: skip
    """Each program averages the pages of one head of one chunk: grid (chunks * heads). See `mean_square_step_sizes`."""
    head = tl.program_id(0)
    pages += head * pages_per_head
    channel = tl.arange(0, HEAD_DIM)[None, :]
    total = tl.zeros([BLOCK_PAGES, HEAD_DIM], tl.float32)
    end = first_token + num_tokens
    for first in range(first_token // PAGE_TOKENS * PAGE_TOKENS, end, BLOCK_PAGES * PAGE_TOKENS):
        token = first + tl.arange(0, BLOCK_PAGES) * PAGE_TOKENS
        # Each page is weighted by how many of the tokens it holds; pages past the end load the last one, at weight 0.
        held = tl.minimum(end, token + PAGE_TOKENS) - tl.maximum(token, first_token)
        weight = tl.maximum(held, 0).to(tl.float32)[:, None]
        page = tl.load(pages + tl.minimum(token, end - 1) // PAGE_TOKENS).to(tl.int64)[:, None]
        step_size = load_step_sizes(
            records, typed, page, channel, HEAD_DIM, PAGE_BYTES, CODE_ROWS, PAIR_STEP_SIZES, SHORT_STEP_SIZES
        )
        total += step_size * step_size * weight
    tl.store(mean + head * HEAD_DIM + tl.arange(0, HEAD_DIM), tl.sum(total, axis=0) / num_tokens)


def mean_square_step_sizes(
    records: Tensor, layout: PageLayout, pages_SHP: Tensor, num_tokens: int, first_token: int = 0
) -> Tensor:
    """`PageKernels.mean_square_step_sizes` for pages of channel codes.

    Raises ConfigError for pages of plain values.
    """
    if layout.is_raw:
        raise ConfigError(f"values of {layout.bits} bits are stored without step sizes; only pages of codes have them")
    num_chunks, num_heads, pages_per_head = pages_SHP.shape
    mean_SHD = torch.empty(num_chunks, num_heads, layout.head_dim, dtype=torch.float32, device=records.device)
    mean_step_sizes_kernel[(num_chunks * num_heads,)](
        records, layout.view(records), pages_SHP, mean_SHD, first_token, num_tokens, pages_per_head,
        **channel_constants(layout), num_warps=NUM_WARPS,
    )  # fmt: skip
    return mean_SHD


def channel_constants(layout: PageLayout) -> dict[str, Any]:
    """Compile-time arguments of the kernel."""
    constants = layout.constants()
    del constants["BITS"]
    return {
        "BLOCK_PAGES": max(1, BLOCK_STEP_SIZES // layout.head_dim),
        "HEAD_DIM": layout.head_dim,
        "PAGE_BYTES": layout.page_bytes,
        **constants,
    }

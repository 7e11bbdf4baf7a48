"""Pages of one chunk -> tokens in a dense scratch, keys turned by their rotary angles on the way.

Reference: `reference.decode`. Every byte is read once and every value written once, so the time is that of memory.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from pagedvid.attention.kernels.layout import PageLayout
from pagedvid.attention.kernels.tokens import load_angles, load_tokens

NUM_WARPS = 8


@triton.jit(do_not_specialize=["num_tokens", "pages_per_head"])
def decode_kernel(
    records,
    typed,
    pages,
    cos,
    sin,
    out,
    num_tokens,
    pages_per_head,
    out_token_stride,
    out_head_stride,
    BLOCK_TOKENS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PAGE_BYTES: tl.constexpr,
    BITS: tl.constexpr,
    PAGE_TOKENS: tl.constexpr,
    CODE_ROWS: tl.constexpr,
    PAIR_STEPS: tl.constexpr,
    SHORT_STEPS: tl.constexpr,
    GATHER: tl.constexpr,
    TURN: tl.constexpr,
):
    """See `decode`. A program decodes one block of tokens of one head: grid (blocks, heads)."""
    HALF: tl.constexpr = HEAD_DIM // 2
    head = tl.program_id(1)
    if GATHER:
        first = tl.program_id(0) * BLOCK_TOKENS
        end = num_tokens
    else:  # blocks never reach from one page into the next
        blocks_per_page: tl.constexpr = (PAGE_TOKENS + BLOCK_TOKENS - 1) // BLOCK_TOKENS
        page = tl.program_id(0) // blocks_per_page
        first = page * PAGE_TOKENS + tl.program_id(0) % blocks_per_page * BLOCK_TOKENS
        end = tl.minimum((page + 1) * PAGE_TOKENS, num_tokens)
    pages += head * pages_per_head
    channel = tl.arange(0, HALF)
    x = load_tokens(
        records, typed, pages, first, end, channel,
        BLOCK_TOKENS, HEAD_DIM, PAGE_BYTES, BITS, PAGE_TOKENS, CODE_ROWS, PAIR_STEPS, SHORT_STEPS, GATHER,
    )  # fmt: skip
    y = load_tokens(
        records, typed, pages, first, end, HALF + channel,
        BLOCK_TOKENS, HEAD_DIM, PAGE_BYTES, BITS, PAGE_TOKENS, CODE_ROWS, PAIR_STEPS, SHORT_STEPS, GATHER,
    )  # fmt: skip
    if TURN:
        cos_tile, sin_tile = load_angles(cos, sin, first, end, BLOCK_TOKENS, HALF)
        x, y = x * cos_tile - y * sin_tile, y * cos_tile + x * sin_tile
    token = first + tl.arange(0, BLOCK_TOKENS)
    places = out + token.to(tl.int64)[:, None] * out_token_stride + head.to(tl.int64) * out_head_stride
    places += channel[None, :]
    mask = (token < end)[:, None]
    tl.store(places, x.to(out.dtype.element_ty), mask=mask)
    tl.store(places + HALF, y.to(out.dtype.element_ty), mask=mask)


def decode(
    records: Tensor,
    layout: PageLayout,
    pages_HP: Tensor,
    out_nHD: Tensor,
    angles: tuple[Tensor, Tensor] | None = None,
) -> None:
    """Writes the tokens that lie in `pages_HP` int32 [H, P], token order, to `out_nHD` [n, H, D], D contiguous.

    `records`: the pool, uint8 [num_pages, page_bytes]. `angles`: (cos, sin) [n, D/2], contiguous, by which tokens turn.
    """
    num_tokens, num_heads, _ = out_nHD.shape
    block = layout.block_tokens()
    cos, sin = angles if angles is not None else (records, records)
    blocks = -(-num_tokens // block)
    if not layout.is_raw:
        blocks = pages_HP.shape[1] * -(-layout.page_tokens // block)
    decode_kernel[(blocks, num_heads)](
        records,
        layout.view(records),
        pages_HP,
        cos,
        sin,
        out_nHD,
        num_tokens,
        pages_HP.stride(0),
        out_nHD.stride(0),
        out_nHD.stride(1),
        **decode_constants(layout, turn=angles is not None),
        num_warps=NUM_WARPS,
    )


def decode_constants(layout: PageLayout, *, turn: bool) -> dict[str, Any]:
    """Compile-time arguments of the kernel."""
    return {
        "BLOCK_TOKENS": layout.block_tokens(),
        "HEAD_DIM": layout.head_dim,
        "PAGE_BYTES": layout.page_bytes,
        **layout.constants(""),
        "GATHER": layout.is_raw,
        "TURN": turn,
    }

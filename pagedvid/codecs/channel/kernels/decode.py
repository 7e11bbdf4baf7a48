"""Pages of one chunk -> tokens in a dense scratch; keys are rotated by their rotary angles on the way.

Reference: `ChannelCodec.decode` and `RawCodec.decode`. Every byte is read once and every value written once, so memory
bandwidth sets the time.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from pagedvid.codecs.channel.kernels.layout import PageLayout
from pagedvid.codecs.channel.kernels.tokens import load_rotated_tokens
from pagedvid.codecs.triton_common import store_halves
from pagedvid.rotary.axis_tables import AngleTables
from pagedvid.rotary.kernels import angle_constants, angle_tensors

NUM_WARPS = 8
MAX_BLOCK_TOKENS = 64
"""With 128 tokens at once, rotated keys need more registers than there are."""


@triton.jit(do_not_specialize=["num_tokens", "pages_per_head", "frame_row"], do_not_specialize_on_alignment=["pages"])
def decode_kernel(
    records, typed, pages, cos, sin, axes, out, num_tokens, pages_per_head, frame_row, out_token_stride,
    out_head_stride,
    BLOCK_TOKENS: tl.constexpr, HEAD_DIM: tl.constexpr, PAGE_BYTES: tl.constexpr, BITS: tl.constexpr,
    PAGE_TOKENS: tl.constexpr, CODE_ROWS: tl.constexpr, PAIR_STEP_SIZES: tl.constexpr, SHORT_STEP_SIZES: tl.constexpr,
    GATHER: tl.constexpr, ROTATE: tl.constexpr, FRAME_TOKENS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Each program decodes one block of tokens of one head: grid (blocks, heads). See `decode`."""
    head = tl.program_id(1)
    if GATHER:
        first = tl.program_id(0) * BLOCK_TOKENS
        end = num_tokens
    else:  # no block spans two pages
        blocks_per_page: tl.constexpr = (PAGE_TOKENS + BLOCK_TOKENS - 1) // BLOCK_TOKENS
        page = tl.program_id(0) // blocks_per_page
        first = page * PAGE_TOKENS + tl.program_id(0) % blocks_per_page * BLOCK_TOKENS
        end = tl.minimum((page + 1) * PAGE_TOKENS, num_tokens)
    pages += head * pages_per_head
    x, y = load_rotated_tokens(
        records, typed, pages, cos, sin, axes, first, end, frame_row,
        BLOCK_TOKENS, HEAD_DIM, PAGE_BYTES, BITS, PAGE_TOKENS, CODE_ROWS, PAIR_STEP_SIZES, SHORT_STEP_SIZES, GATHER,
        ROTATE, FRAME_TOKENS, WIDTH,
    )  # fmt: skip
    token = first + tl.arange(0, BLOCK_TOKENS)
    store_halves(out + token.to(tl.int64) * out_token_stride + head.to(tl.int64) * out_head_stride, x, y, token < end)


def decode(
    records: Tensor,
    layout: PageLayout,
    pages_HP: Tensor,
    out_nHD: Tensor,
    angles: AngleTables | None = None,
    frame_row: int = 0,
) -> None:
    """Writes the tokens of the pages `pages_HP` int32 [H, P], in order, to `out_nHD` [n, H, D], D contiguous.

    `records`: the pool, uint8 [num_pages, page_bytes]. `angles`: tables of the angles by which the tokens are rotated;
    `frame_row` is the row of their first frame.
    """
    num_tokens, num_heads, _ = out_nHD.shape
    block = block_tokens(layout)
    blocks = -(-num_tokens // block)
    if not layout.is_raw:
        blocks = pages_HP.shape[1] * -(-layout.page_tokens // block)
    decode_kernel[(blocks, num_heads)](
        records, layout.view(records), pages_HP, *angle_tensors(angles, records), out_nHD, num_tokens,
        pages_HP.stride(0), frame_row, *out_nHD.stride()[:2],
        **decode_constants(layout, angles), num_warps=NUM_WARPS,
    )  # fmt: skip


def block_tokens(layout: PageLayout) -> int:
    """Tokens that one program decodes."""
    return min(layout.block_tokens(), MAX_BLOCK_TOKENS)


def decode_constants(layout: PageLayout, angles: AngleTables | None) -> dict[str, Any]:
    """Compile-time arguments of the kernel."""
    return {
        "BLOCK_TOKENS": block_tokens(layout),
        "HEAD_DIM": layout.head_dim,
        "PAGE_BYTES": layout.page_bytes,
        **layout.constants(""),
        "GATHER": layout.is_raw,
        **angle_constants(angles),
    }

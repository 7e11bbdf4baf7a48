"""Kernels for pages of plain values. The kernel of channel codes, whose layout they share, also reads these pages.

Reference: `RawCodec`.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor
from typing_extensions import override

from pagedvid.codecs.channel.kernels.encode import load_rotated
from pagedvid.codecs.channel.kernels.layout import RAW_BLOCK_TOKENS, PageLayout
from pagedvid.codecs.channel.kernels.pages import LayoutKernels, arrival_options
from pagedvid.rotary.tables import Arrival

NUM_WARPS = 8


@triton.jit(
    do_not_specialize=["num_tokens", "padded_tokens", "pages_per_head"], do_not_specialize_on_alignment=["pages"]
)
def encode_raw_kernel(
    x, typed, pages, cos, sin, bad, num_tokens, padded_tokens, pages_per_head, x_token_stride, x_head_stride,
    BLOCK_TOKENS: tl.constexpr, HEAD_DIM: tl.constexpr, PAGE_BYTES: tl.constexpr, INTERLEAVED: tl.constexpr,
    ROTATE: tl.constexpr, BITS: tl.constexpr, PAGE_TOKENS: tl.constexpr,
):  # fmt: skip
    """Each program writes one block of tokens of one head: grid (blocks of tokens, heads). See `encode_raw`."""
    HALF: tl.constexpr = HEAD_DIM // 2
    head = tl.program_id(1)
    token = tl.program_id(0) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    has_place = token < padded_tokens
    page = tl.load(pages + head * pages_per_head + token // PAGE_TOKENS, mask=has_place, other=0).to(tl.int64)
    first, second = load_rotated(
        x + head.to(tl.int64) * x_head_stride, cos, sin, tl.minimum(token, num_tokens - 1), x_token_stride, HALF,
        INTERLEAVED, ROTATE,
    )  # fmt: skip
    is_token = (token < num_tokens)[:, None]
    first = tl.where(is_token, first, 0.0).to(typed.dtype.element_ty)
    second = tl.where(is_token, second, 0.0).to(typed.dtype.element_ty)
    finite = (tl.abs(first.to(tl.float32)) < float("inf")) & (tl.abs(second.to(tl.float32)) < float("inf"))
    flags = tl.max(tl.where(finite, 0, 1), axis=1)
    tl.store(bad + head * tl.num_programs(0) + tl.program_id(0), tl.max(flags, axis=0).to(tl.uint8))
    half = tl.arange(0, HALF)[None, :]
    places = typed + (page * (PAGE_BYTES * 8 // BITS) + token % PAGE_TOKENS * HEAD_DIM)[:, None] + half
    tl.store(places, first, mask=has_place[:, None])
    tl.store(places + HALF, second, mask=has_place[:, None])


def encode_raw(
    x_nHD: Tensor,
    records: Tensor,
    layout: PageLayout,
    pages_HP: Tensor,
    angles: tuple[Tensor, Tensor] | None = None,
    *,
    rotate: int = 0,
    pairs: str = "half",
) -> Tensor:
    """Writes tokens as plain values, with the arguments of `encode` for channel codes.

    Returns flags uint8 [H, blocks]; any nonzero flag means that the head's values cannot be stored.
    """
    num_tokens, num_heads, _ = x_nHD.shape
    cos, sin = angles if angles is not None and rotate else (records, records)
    padded_tokens = pages_HP.shape[1] * layout.page_tokens
    blocks = triton.cdiv(padded_tokens, RAW_BLOCK_TOKENS)
    bad = x_nHD.new_empty(num_heads, blocks, dtype=records.dtype)
    encode_raw_kernel[(blocks, num_heads)](
        x_nHD, layout.view(records), pages_HP, cos, sin, bad, num_tokens, padded_tokens, pages_HP.stride(0),
        *x_nHD.stride()[:2], **raw_constants(layout, pairs, rotate), num_warps=NUM_WARPS,
    )  # fmt: skip
    return bad


def raw_constants(layout: PageLayout, pairs: str, rotate: int) -> dict[str, Any]:
    """Compile-time arguments of the kernel."""
    return {
        "BLOCK_TOKENS": RAW_BLOCK_TOKENS,
        "HEAD_DIM": layout.head_dim,
        "PAGE_BYTES": layout.page_bytes,
        "INTERLEAVED": pairs == "interleaved",
        "ROTATE": rotate,
        "BITS": layout.bits,
        "PAGE_TOKENS": layout.page_tokens,
    }


class RawKernels(LayoutKernels):
    """Pages of plain values."""

    @override
    def encode(self, x_nHD: Tensor, records: Tensor, pages_HP: Tensor, arrival: Arrival | None = None) -> Tensor:
        return encode_raw(x_nHD, records, self.layout, pages_HP, **arrival_options(arrival))

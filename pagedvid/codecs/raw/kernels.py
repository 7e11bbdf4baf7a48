"""Kernels for pages of plain values. Pages are short (18 tokens), so that a block takes tokens of several.

Reference: `RawCodec`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import triton
import triton.language as tl
from torch import Tensor
from typing_extensions import override

from pagedvid.codecs.base import PageKernels
from pagedvid.codecs.channel.kernels.encode import load_rotated
from pagedvid.codecs.channel.kernels.layout import PageLayout
from pagedvid.codecs.channel.kernels.pages import arrival_options
from pagedvid.codecs.triton_decode import (
    COUNTS,
    UNALIGNED,
    decode_arguments,
    decode_grid,
    decode_options,
    load_angles,
    out_of_chunk,
    out_of_head,
    rotate,
    store_halves,
)
from pagedvid.rotary.angles import Angles
from pagedvid.rotary.tables import Arrival

NUM_WARPS, DECODE_WARPS = 8, 4
BLOCK_TOKENS = 32


@triton.jit(do_not_specialize=COUNTS, do_not_specialize_on_alignment=UNALIGNED)
def decode_raw_kernel(
    typed, pages, cos, sin, tables, inverse_scales, out_heads, out, num_tokens, num_heads, pages_per_head,
    chunks_per_range, out_range_stride, out_chunk_stride, out_token_stride, out_head_stride,
    BLOCK_TOKENS: tl.constexpr, HEAD_DIM: tl.constexpr, PAGE_BYTES: tl.constexpr, BITS: tl.constexpr,
    PAGE_TOKENS: tl.constexpr, HEADS: tl.constexpr, ROTATE: tl.constexpr, SCALED: tl.constexpr, PLACED: tl.constexpr,
):  # fmt: skip
    """Each program decodes one block of tokens. See `decode_raw` and codecs/triton_decode.py."""
    HALF: tl.constexpr = HEAD_DIM // 2
    chunk = tl.program_id(1)
    token = tl.program_id(0) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    existing = tl.minimum(token, num_tokens - 1)
    values = typed + (existing % PAGE_TOKENS * HEAD_DIM)[:, None] + tl.arange(0, HALF)[None, :]
    rows = out_of_chunk(out, chunk, chunks_per_range, out_range_stride, out_chunk_stride)
    rows += token.to(tl.int64) * out_token_stride
    if ROTATE:
        cos_tile, sin_tile = load_angles(cos, sin, tables, chunk, token, num_tokens, HALF)
    first_head = tl.program_id(2) * HEADS
    for head in range(first_head, tl.minimum(first_head + HEADS, num_heads)):
        page = tl.load(pages + (chunk * num_heads + head) * pages_per_head + existing // PAGE_TOKENS).to(tl.int64)
        places = values + (page * (PAGE_BYTES * 8 // BITS))[:, None]
        x, y = tl.load(places), tl.load(places + HALF)
        if ROTATE:
            x, y = rotate(x.to(tl.float32), y.to(tl.float32), cos_tile, sin_tile)
        head_rows = out_of_head(rows, out_heads, head, out_head_stride, PLACED)
        store_halves(head_rows, x, y, token < num_tokens, inverse_scales + chunk * num_heads + head, SCALED)


def decode_raw(
    records: Tensor,
    layout: PageLayout,
    pages_SHP: Tensor,
    num_tokens: int,
    out_EJnHD: Tensor,
    angles: Angles | None = None,
    inverse_scales_SH: Tensor | None = None,
    out_heads_H: Tensor | None = None,
) -> None:
    """`PageKernels.decode` for pages of plain values."""
    decode_raw_kernel[decode_grid(triton.cdiv(num_tokens, BLOCK_TOKENS), pages_SHP)](
        layout.view(records),
        *decode_arguments(pages_SHP, num_tokens, out_EJnHD, angles, inverse_scales_SH, out_heads_H),
        **decode_raw_constants(layout, angles, inverse_scales_SH, out_heads_H), num_warps=DECODE_WARPS,
    )  # fmt: skip


def decode_raw_constants(
    layout: PageLayout, angles: Angles | None, inverse_scales_SH: Tensor | None, out_heads_H: Tensor | None = None
) -> dict[str, Any]:
    """Compile-time arguments of the kernel."""
    return {
        "BLOCK_TOKENS": BLOCK_TOKENS,
        "HEAD_DIM": layout.head_dim,
        "PAGE_BYTES": layout.page_bytes,
        "BITS": layout.bits,
        "PAGE_TOKENS": layout.page_tokens,
        **decode_options(angles, inverse_scales_SH, out_heads_H),
    }


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
    blocks = triton.cdiv(padded_tokens, BLOCK_TOKENS)
    bad = x_nHD.new_empty(num_heads, blocks, dtype=records.dtype)
    encode_raw_kernel[(blocks, num_heads)](
        x_nHD, layout.view(records), pages_HP, cos, sin, bad, num_tokens, padded_tokens, pages_HP.stride(0),
        *x_nHD.stride()[:2], **raw_constants(layout, pairs, rotate), num_warps=NUM_WARPS,
    )  # fmt: skip
    return bad


def raw_constants(layout: PageLayout, pairs: str, rotate: int) -> dict[str, Any]:
    """Compile-time arguments of the kernel."""
    return {
        "BLOCK_TOKENS": BLOCK_TOKENS,
        "HEAD_DIM": layout.head_dim,
        "PAGE_BYTES": layout.page_bytes,
        "INTERLEAVED": pairs == "interleaved",
        "ROTATE": rotate,
        "BITS": layout.bits,
        "PAGE_TOKENS": layout.page_tokens,
    }


@dataclass(frozen=True)
class RawKernels(PageKernels):
    """Pages of plain values."""

    layout: PageLayout
    takes_arrivals = True

    @override
    def decode(
        self,
        records: Tensor,
        pages_SHP: Tensor,
        num_tokens: int,
        out_EJnHD: Tensor,
        angles: Angles | None = None,
        inverse_scales_SH: Tensor | None = None,
        out_heads_H: Tensor | None = None,
    ) -> None:
        decode_raw(records, self.layout, pages_SHP, num_tokens, out_EJnHD, angles, inverse_scales_SH, out_heads_H)

    @override
    def encode(self, x_nHD: Tensor, records: Tensor, pages_HP: Tensor, arrival: Arrival | None = None) -> Tensor:
        return encode_raw(x_nHD, records, self.layout, pages_HP, **arrival_options(arrival))

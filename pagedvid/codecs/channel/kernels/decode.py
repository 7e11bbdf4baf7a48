"""Pages of channel codes -> tokens; keys are rotated by their rotary angles on the way.

Reference: `ChannelCodec.decode`. A byte holds the codes of tokens r, r + C, r + 2C, ... of one channel (packing.py), so
each thread loads a few neighbouring bytes and makes of each of their bit fields the neighbouring channels of one token:
codes, angles and tokens all move in wide words, without a shuffle. Step sizes and zero points are loaded once for all
tokens of a thread.

A code becomes a number without a shift or a conversion: `byte & mask` in the low bits of the float32 number 2^23 is
2^23 + code * 2^shift, and one multiplication and subtraction, both exact, leave the code.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from pagedvid.codecs.channel.kernels.layout import PageLayout
from pagedvid.codecs.channel.kernels.metadata import load_step_sizes, load_zero_points
from pagedvid.codecs.triton_decode import (
    COUNTS,
    UNALIGNED,
    decode_arguments,
    decode_grid,
    decode_options,
    load_angles,
    out_of_chunk,
    rotate,
    store_halves,
)
from pagedvid.rotary.angles import Angles

THREAD_VALUES = {True: 32, False: 64}
"""Values of a head that a thread decodes: fewer if they are rotated, since it keeps their angles in registers."""
MAX_WARPS = 4
BLOCK_ROWS = (32, 16, 8)
BITS_OF_2_23 = tl.constexpr(0x4B000000)


@triton.jit
def code_of(byte, FIELD: tl.constexpr, BITS: tl.constexpr):
    """One bit field of bytes, given as the bits of 2^23 + byte, as float32."""
    SHIFT: tl.constexpr = FIELD * BITS
    MASK: tl.constexpr = BITS_OF_2_23 | (((1 << BITS) - 1) << SHIFT)
    number = (byte & MASK).to(tl.float32, bitcast=True)
    return tl.fma(number, 0.5**SHIFT, -(2.0**23) * 0.5**SHIFT)


@triton.jit(do_not_specialize=COUNTS, do_not_specialize_on_alignment=UNALIGNED)
def decode_kernel(
    records, typed, pages, cos, sin, tables, inverse_scales, out_heads, out, num_tokens, num_heads, pages_per_head,
    chunks_per_range, out_range_stride, out_chunk_stride, out_token_stride, out_head_stride,
    BLOCK_ROWS: tl.constexpr, HEAD_DIM: tl.constexpr, PAGE_BYTES: tl.constexpr, BITS: tl.constexpr,
    PAGE_TOKENS: tl.constexpr, CODE_ROWS: tl.constexpr, PAIR_STEP_SIZES: tl.constexpr, SHORT_STEP_SIZES: tl.constexpr,
    HEADS: tl.constexpr, ROTATE: tl.constexpr, SCALED: tl.constexpr, PLACED: tl.constexpr,
):  # fmt: skip
    """Each program decodes a block of code rows of a page. See `decode` and codecs/triton_decode.py."""
    HALF: tl.constexpr = HEAD_DIM // 2
    FIELDS: tl.constexpr = 8 // BITS
    blocks_per_page: tl.constexpr = (CODE_ROWS + BLOCK_ROWS - 1) // BLOCK_ROWS
    chunk = tl.program_id(1)
    number = tl.program_id(0) // blocks_per_page
    row = tl.program_id(0) % blocks_per_page * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    in_page = row < CODE_ROWS
    channel = tl.arange(0, HALF)
    places = tl.minimum(row, CODE_ROWS - 1)[:, None] * HEAD_DIM + channel[None, :]
    first_token = number * PAGE_TOKENS + row
    out = out_of_chunk(out, chunk, chunks_per_range, out_range_stride, out_chunk_stride)
    cosines, sines = tl.tuple(()), tl.tuple(())
    if ROTATE:
        for field in tl.static_range(FIELDS):
            token = first_token + field * CODE_ROWS
            cos_tile, sin_tile = load_angles(cos, sin, tables, chunk, token, num_tokens, HALF)
            cosines += (cos_tile,)
            sines += (sin_tile,)
    first_head = tl.program_id(2) * HEADS
    pages += chunk * num_heads * pages_per_head + number
    next_page = tl.load(pages + first_head * pages_per_head)
    if not PLACED:  # a pointer that moves on takes fewer instructions than `out_of_head`
        out += first_head.to(tl.int64) * out_head_stride
    for head in range(first_head, tl.minimum(first_head + HEADS, num_heads)):
        page = next_page.to(tl.int64)  # loaded ahead, so that the codes need not wait for it
        next_page = tl.load(pages + tl.minimum(head + 1, num_heads - 1) * pages_per_head)
        first_bytes = tl.load(records + page * PAGE_BYTES + places).to(tl.int32) | BITS_OF_2_23
        second_bytes = tl.load(records + page * PAGE_BYTES + places + HALF).to(tl.int32) | BITS_OF_2_23
        first_step_size = load_step_sizes(
            records, typed, page, channel, HEAD_DIM, PAGE_BYTES, CODE_ROWS, PAIR_STEP_SIZES, SHORT_STEP_SIZES
        )[None, :]
        second_step_size = first_step_size
        if not PAIR_STEP_SIZES:
            second_step_size = load_step_sizes(
                records, typed, page, HALF + channel, HEAD_DIM, PAGE_BYTES, CODE_ROWS, False, SHORT_STEP_SIZES
            )[None, :]
        first_zero_point = load_zero_points(typed, page, channel, HEAD_DIM, PAGE_BYTES)[None, :]
        second_zero_point = load_zero_points(typed, page, HALF + channel, HEAD_DIM, PAGE_BYTES)[None, :]
        out_head = out
        if PLACED:
            out_head += tl.load(out_heads + head) * out_head_stride
        for field in tl.static_range(FIELDS):
            x = first_zero_point + first_step_size * code_of(first_bytes, field, BITS)
            y = second_zero_point + second_step_size * code_of(second_bytes, field, BITS)
            if ROTATE:
                x, y = rotate(x, y, cosines[field], sines[field])
            token = first_token + field * CODE_ROWS
            rows = out_head + token.to(tl.int64) * out_token_stride
            mask = in_page & (token < num_tokens)
            store_halves(rows, x, y, mask, inverse_scales + chunk * num_heads + head, SCALED)
        if not PLACED:
            out += out_head_stride


def decode(
    records: Tensor,
    layout: PageLayout,
    pages_SHP: Tensor,
    num_tokens: int,
    out_EJnHD: Tensor,
    angles: Angles | None = None,
    inverse_scales_SH: Tensor | None = None,
    out_heads_H: Tensor | None = None,
) -> None:
    """`PageKernels.decode` for pages of channel codes."""
    constants = decode_constants(layout, angles, inverse_scales_SH, out_heads_H)
    blocks = triton.cdiv(num_tokens, layout.page_tokens) * triton.cdiv(layout.code_rows, constants["BLOCK_ROWS"])
    decode_kernel[decode_grid(blocks, pages_SHP)](
        records, layout.view(records),
        *decode_arguments(pages_SHP, num_tokens, out_EJnHD, angles, inverse_scales_SH, out_heads_H),
        **constants, num_warps=num_warps(layout, rotates=angles is not None),
    )  # fmt: skip


def decode_constants(
    layout: PageLayout, angles: Angles | None, inverse_scales_SH: Tensor | None, out_heads_H: Tensor | None = None
) -> dict[str, Any]:
    """Compile-time arguments of the kernel."""
    return {
        "BLOCK_ROWS": block_rows(layout, rotates=angles is not None),
        "HEAD_DIM": layout.head_dim,
        "PAGE_BYTES": layout.page_bytes,
        **layout.constants(),
        **decode_options(angles, inverse_scales_SH, out_heads_H),
    }


def block_rows(layout: PageLayout, *, rotates: bool) -> int:
    """Code rows that one program decodes: enough for its warps; few enough to leave few rows of a page's last block
    empty."""
    most = MAX_WARPS * 32 * THREAD_VALUES[rotates] * layout.bits // (8 * layout.head_dim)
    allowed = [rows for rows in BLOCK_ROWS if rows <= most] or BLOCK_ROWS[-1:]
    return min(allowed, key=lambda rows: -(-layout.code_rows // rows) * rows)


def num_warps(layout: PageLayout, *, rotates: bool) -> int:
    """Warps of a program."""
    values = block_rows(layout, rotates=rotates) * layout.head_dim * 8 // layout.bits
    return max(1, values // (32 * THREAD_VALUES[rotates]))

"""Device functions that read tokens from pages in the layouts of codecs/channel/codec.py and codecs/raw/codec.py.

Arguments in capitals are compile-time constants. `records` are the pool's bytes; `typed` is the same memory as fp16
(step sizes and zero points of codes) or in the dtype of a raw page; `pages` is the page list of one (chunk, kind,
layer, KV head). Page ids are widened to 64 bits before they are multiplied, since a pool may be larger than 2 GiB.
"""

from __future__ import annotations

import triton
import triton.language as tl

from pagedvid.codecs.packing import SHORT_ONE, SHORT_PER_OCTAVE
from pagedvid.rotary.kernels import load_angles, rotate

ONE, PER_OCTAVE = tl.constexpr(float(SHORT_ONE)), tl.constexpr(float(SHORT_PER_OCTAVE))


@triton.jit
def load_step_sizes(
    records,
    typed,
    page,
    channel,
    HEAD_DIM: tl.constexpr,
    PAGE_BYTES: tl.constexpr,
    CODE_ROWS: tl.constexpr,
    PAIR_STEP_SIZES: tl.constexpr,
    SHORT_STEP_SIZES: tl.constexpr,
):
    """Step sizes of some channels of some pages, float32; `page` (int64) and `channel` broadcast."""
    place = channel % (HEAD_DIM // 2) if PAIR_STEP_SIZES else channel
    if SHORT_STEP_SIZES:
        byte = tl.load(records + page * PAGE_BYTES + CODE_ROWS * HEAD_DIM + place).to(tl.float32)
        step_size = tl.where(byte == 0.0, 0.0, tl.exp2((byte - ONE) / PER_OCTAVE))
    else:
        step_size = tl.load(typed + page * (PAGE_BYTES // 2) + CODE_ROWS * HEAD_DIM // 2 + place).to(tl.float32)
    return step_size


@triton.jit
def load_zero_points(typed, page, channel, HEAD_DIM: tl.constexpr, PAGE_BYTES: tl.constexpr):
    """Zero points of some channels of some pages, float32: the last two rows."""
    return tl.load(typed + page * (PAGE_BYTES // 2) + (PAGE_BYTES // 2 - HEAD_DIM) + channel).to(tl.float32)


@triton.jit
def load_tokens(
    records,
    typed,
    pages,
    first,
    end,
    channel,
    BLOCK_TOKENS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PAGE_BYTES: tl.constexpr,
    BITS: tl.constexpr,
    PAGE_TOKENS: tl.constexpr,
    CODE_ROWS: tl.constexpr,
    PAIR_STEP_SIZES: tl.constexpr,
    SHORT_STEP_SIZES: tl.constexpr,
    GATHER: tl.constexpr,
):
    """Tokens first, first + 1, ... of a page list, float32 [BLOCK_TOKENS, channels]; those from `end` on repeat others.

    Without GATHER all tokens before `end` must be in one page, whose step sizes are then loaded once. There must be a
    token before `end`.
    """
    if GATHER:
        token = tl.minimum(first + tl.arange(0, BLOCK_TOKENS), end - 1)
        page = tl.load(pages + token // PAGE_TOKENS).to(tl.int64)[:, None]
    else:
        token = first + tl.arange(0, BLOCK_TOKENS)
        page = tl.load(pages + first // PAGE_TOKENS).to(tl.int64)
    place = token % PAGE_TOKENS
    columns = channel[None, :]
    if BITS >= 16:
        values = typed + page * (PAGE_BYTES * 8 // BITS) + place[:, None] * HEAD_DIM + columns
        x = tl.load(values).to(tl.float32)
    else:
        row = place % CODE_ROWS
        shift = (place // CODE_ROWS) * BITS
        byte = tl.load(records + page * PAGE_BYTES + row[:, None] * HEAD_DIM + columns).to(tl.int32)
        code = (byte >> shift[:, None]) & ((1 << BITS) - 1)
        step_size = load_step_sizes(
            records, typed, page, columns, HEAD_DIM, PAGE_BYTES, CODE_ROWS, PAIR_STEP_SIZES, SHORT_STEP_SIZES
        )
        x = load_zero_points(typed, page, columns, HEAD_DIM, PAGE_BYTES) + step_size * code.to(tl.float32)
    return x


@triton.jit
def load_rotated_tokens(
    records, typed, pages, cos, sin, axes, first, end, frame_row,
    BLOCK_TOKENS: tl.constexpr, HEAD_DIM: tl.constexpr, PAGE_BYTES: tl.constexpr, BITS: tl.constexpr,
    PAGE_TOKENS: tl.constexpr, CODE_ROWS: tl.constexpr, PAIR_STEP_SIZES: tl.constexpr, SHORT_STEP_SIZES: tl.constexpr,
    GATHER: tl.constexpr, ROTATE: tl.constexpr, FRAME_TOKENS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Both halves of the channels of the tokens of `load_tokens`, rotated by the angles of `load_angles`."""
    HALF: tl.constexpr = HEAD_DIM // 2
    channel = tl.arange(0, HALF)
    x = load_tokens(
        records, typed, pages, first, end, channel,
        BLOCK_TOKENS, HEAD_DIM, PAGE_BYTES, BITS, PAGE_TOKENS, CODE_ROWS, PAIR_STEP_SIZES, SHORT_STEP_SIZES, GATHER,
    )  # fmt: skip
    y = load_tokens(
        records, typed, pages, first, end, HALF + channel,
        BLOCK_TOKENS, HEAD_DIM, PAGE_BYTES, BITS, PAGE_TOKENS, CODE_ROWS, PAIR_STEP_SIZES, SHORT_STEP_SIZES, GATHER,
    )  # fmt: skip
    if ROTATE:
        token = first + tl.arange(0, BLOCK_TOKENS)
        cos_tile, sin_tile = load_angles(cos, sin, axes, token, frame_row, token < end, HALF, FRAME_TOKENS, WIDTH)
        x, y = rotate(x, y, cos_tile, sin_tile)
    return x, y

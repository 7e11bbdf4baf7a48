"""Device functions that read the step sizes and zero points of pages; see codecs/channel/codec.py.

Arguments in capitals are compile-time constants. `records` are the pool's bytes; `typed` is the same memory as fp16.
Page ids are widened to 64 bits before they are multiplied, since a pool may be larger than 2 GiB.
"""

from __future__ import annotations

import triton
import triton.language as tl

from pagedvid.codecs.packing import SHORT_ONE, SHORT_PER_OCTAVE

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

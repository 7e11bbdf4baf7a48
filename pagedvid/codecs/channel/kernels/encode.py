"""Keys or values of a chunk -> page records, in one pass: rotate, reduce, round, pack, write.

Reference: `ChannelCodec.encode`. The bytes agree, except that a rotated key may differ by the rounding of a fused
multiply-add and so, rarely, by one code. Each program writes one page; it reads its tokens twice, the second time from
the processor's cache.

Nothing here waits for the device: values that no page can hold (NaN, infinity, beyond fp16) set a flag per page, which
the caller checks once, at the end of the step.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from pagedvid.codecs.channel.kernels.layout import PageLayout
from pagedvid.codecs.channel.kernels.metadata import ONE, PER_OCTAVE
from pagedvid.codecs.packing import short_step_sizes
from pagedvid.codecs.triton_common import LIMIT, ROUND, round_down_fp16, round_up_fp16

NUM_WARPS = 8


@triton.jit
def load_rotated(x, cos, sin, token, token_stride, HALF: tl.constexpr, INTERLEAVED: tl.constexpr, ROTATE: tl.constexpr):
    """Both channels of the pairs of tokens, float32 [N, HALF] each. ROTATE: 1 rotated, -1 un-rotated, 0 as they are."""
    half = tl.arange(0, HALF)[None, :]
    row = x + token.to(tl.int64)[:, None] * token_stride
    if INTERLEAVED:
        first = tl.load(row + 2 * half).to(tl.float32)
        second = tl.load(row + 2 * half + 1).to(tl.float32)
    else:
        first = tl.load(row + half).to(tl.float32)
        second = tl.load(row + HALF + half).to(tl.float32)
    if ROTATE != 0:
        rows = token.to(tl.int64)[:, None] * HALF + half
        cos_tile = tl.load(cos + rows).to(tl.float32)
        sin_tile = tl.load(sin + rows).to(tl.float32) * ROTATE
        first, second = first * cos_tile - second * sin_tile, second * cos_tile + first * sin_tile
    return first, second


@triton.jit
def short_step_size(short_step_sizes, least):
    """(byte int32, step size) of the smallest 8-bit step size that is not below `least`; see codecs/packing.py."""
    guess = tl.ceil(tl.log2(tl.maximum(least, 1e-30)) * PER_OCTAVE + ONE).to(tl.int32)
    byte = tl.minimum(tl.maximum(guess - 1, 0), 255)  # the guess may be off by one either way
    for _ in tl.static_range(2):
        byte = tl.where(tl.load(short_step_sizes + byte) < least, tl.minimum(byte + 1, 255), byte)
    return byte, tl.load(short_step_sizes + byte)


@triton.jit
def to_codes(x, zero_point, step_size, LEVELS: tl.constexpr):
    """int32 codes of x [N, C]; zero points fp16 [C], step sizes fp16 or float32 [C]."""
    divisor = tl.where(step_size == 0.0, 1.0, step_size.to(tl.float32))[None, :]
    scaled = tl.div_rn(x - zero_point.to(tl.float32)[None, :], tl.zeros_like(x) + divisor)
    rounded = (scaled + ROUND) - ROUND
    return tl.minimum(tl.maximum(rounded, 0.0), LEVELS).to(tl.int32)


@triton.jit(do_not_specialize=["num_tokens", "pages_per_head"], do_not_specialize_on_alignment=["pages"])
def encode_kernel(
    x, records, typed, pages, cos, sin, short_step_sizes, bad, num_tokens, pages_per_head, x_token_stride,
    x_head_stride,
    BLOCK_ROWS: tl.constexpr, HEAD_DIM: tl.constexpr, PAGE_BYTES: tl.constexpr, INTERLEAVED: tl.constexpr,
    ROTATE: tl.constexpr, BITS: tl.constexpr, PAGE_TOKENS: tl.constexpr, CODE_ROWS: tl.constexpr,
    PAIR_STEP_SIZES: tl.constexpr, SHORT_STEP_SIZES: tl.constexpr,
):  # fmt: skip
    """Each program encodes one page of one head: grid (pages, heads). See `encode`."""
    HALF: tl.constexpr = HEAD_DIM // 2
    LEVELS: tl.constexpr = (1 << BITS) - 1
    head = tl.program_id(1)
    number = tl.program_id(0)
    page = tl.load(pages + head * pages_per_head + number).to(tl.int64)
    x += head.to(tl.int64) * x_head_stride
    row = tl.arange(0, BLOCK_ROWS)
    half = tl.arange(0, HALF)
    # Rows and tokens beyond the end repeat the last one, which leaves the smallest and largest values unchanged.
    first_token = number * PAGE_TOKENS + tl.minimum(row, CODE_ROWS - 1)
    low = tl.full([HALF], float("inf"), tl.float32)
    high = tl.full([HALF], float("-inf"), tl.float32)
    other_low = low
    other_high = high
    is_bad = tl.zeros([HALF], tl.int32)
    for field in tl.static_range(8 // BITS):
        token = tl.minimum(first_token + field * CODE_ROWS, num_tokens - 1)
        first, second = load_rotated(x, cos, sin, token, x_token_stride, HALF, INTERLEAVED, ROTATE)
        storable = (tl.abs(first) < LIMIT) & (tl.abs(second) < LIMIT)  # false for NaN
        is_bad = tl.maximum(is_bad, tl.max(tl.where(storable, 0, 1), axis=0))
        low = tl.minimum(low, tl.min(first, axis=0))
        high = tl.maximum(high, tl.max(first, axis=0))
        other_low = tl.minimum(other_low, tl.min(second, axis=0))
        other_high = tl.maximum(other_high, tl.max(second, axis=0))
    tl.store(bad + head * tl.num_programs(0) + number, tl.max(is_bad, axis=0).to(tl.uint8))

    zero_point = round_down_fp16(low)
    other_zero_point = round_down_fp16(other_low)
    levels = tl.full([HALF], LEVELS, tl.float32)
    least = tl.div_rn(high - zero_point.to(tl.float32), levels)
    other_least = tl.div_rn(other_high - other_zero_point.to(tl.float32), levels)
    if PAIR_STEP_SIZES:
        least = tl.maximum(least, other_least)
        other_least = least
    zero_points = typed + page * (PAGE_BYTES // 2) + (PAGE_BYTES // 2 - HEAD_DIM) + half
    tl.store(zero_points, zero_point)
    tl.store(zero_points + HALF, other_zero_point)
    if SHORT_STEP_SIZES:
        byte, step_size = short_step_size(short_step_sizes, least)
        other_byte, other_step_size = short_step_size(short_step_sizes, other_least)
        step_sizes = records + page * PAGE_BYTES + CODE_ROWS * HEAD_DIM + half
        tl.store(step_sizes, byte.to(tl.uint8))
        tl.store(step_sizes + HALF, 0 if PAIR_STEP_SIZES else other_byte.to(tl.uint8))
    else:
        step_size = round_up_fp16(least)
        other_step_size = round_up_fp16(other_least)
        step_sizes = typed + page * (PAGE_BYTES // 2) + CODE_ROWS * HEAD_DIM // 2 + half
        tl.store(step_sizes, step_size)
        if not PAIR_STEP_SIZES:
            tl.store(step_sizes + HALF, other_step_size)

    packed = tl.zeros([BLOCK_ROWS, HALF], tl.int32)
    other_packed = tl.zeros([BLOCK_ROWS, HALF], tl.int32)
    for field in tl.static_range(8 // BITS):
        token = tl.minimum(first_token + field * CODE_ROWS, num_tokens - 1)
        first, second = load_rotated(x, cos, sin, token, x_token_stride, HALF, INTERLEAVED, ROTATE)
        packed |= to_codes(first, zero_point, step_size, LEVELS) << (BITS * field)
        other_packed |= to_codes(second, other_zero_point, other_step_size, LEVELS) << (BITS * field)
    places = records + page * PAGE_BYTES + row[:, None] * HEAD_DIM + half[None, :]
    is_row = (row < CODE_ROWS)[:, None]
    tl.store(places, packed.to(tl.uint8), mask=is_row)
    tl.store(places + HALF, other_packed.to(tl.uint8), mask=is_row)


def encode(
    x_nHD: Tensor,
    records: Tensor,
    layout: PageLayout,
    pages_HP: Tensor,
    angles: tuple[Tensor, Tensor] | None = None,
    *,
    rotate: int = 0,
    pairs: str = "half",
) -> Tensor:
    """Writes tokens [n, H, D] (float32 or bfloat16, D contiguous) into the pages `pages_HP` int32 [H, P] of the pool.

    `pairs`: which channels of x form a pair, "half" or "interleaved"; pages hold them in half layout.
    `angles`: (cos, sin) [n, D/2], contiguous; `rotate` is 1 to rotate the tokens by them first, -1 to un-rotate them.
    Returns flags uint8 [H, P]; any nonzero flag means that the head's values cannot be stored.
    """
    num_tokens, num_heads, _ = x_nHD.shape
    num_pages = pages_HP.shape[1]
    cos, sin = angles if angles is not None and rotate else (records, records)
    typed = layout.view(records)
    bad = x_nHD.new_empty(num_heads, num_pages, dtype=records.dtype)
    encode_kernel[(num_pages, num_heads)](
        x_nHD, records, typed, pages_HP, cos, sin, short_step_sizes(x_nHD.device), bad, num_tokens, pages_HP.stride(0),
        *x_nHD.stride()[:2],
        **encode_constants(layout, pairs, rotate), num_warps=num_warps(layout),
    )  # fmt: skip
    return bad


def num_warps(layout: PageLayout) -> int:
    """Warps of the kernel. Pages of 33 rows of codes are padded to 64 and would spill registers with 8 warps."""
    return NUM_WARPS if layout.code_rows <= 32 else 2 * NUM_WARPS


def encode_constants(layout: PageLayout, pairs: str, rotate: int) -> dict[str, Any]:
    """Compile-time arguments of the kernel."""
    return {
        "BLOCK_ROWS": triton.next_power_of_2(layout.code_rows),
        "HEAD_DIM": layout.head_dim,
        "PAGE_BYTES": layout.page_bytes,
        "INTERLEAVED": pairs == "interleaved",
        "ROTATE": rotate,
        **layout.constants(),
    }

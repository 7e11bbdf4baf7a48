"""Chooses the scale bytes of klt pages for each page and channel direction, and writes them to the records' last bytes.

Reference: `choose_scales` of codecs/klt/scales.py. Each program reads its coefficients once for their size and once for
every candidate; they are few enough to stay in the first-level cache.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from pagedvid.codecs.klt import scales as klt_scales
from pagedvid.codecs.klt.kernels.layout import KltLayout
from pagedvid.codecs.klt.kernels.levels import likely_miss, reach_of, rounded, scale_byte_of, scale_of

FIRST_OFFSET = tl.constexpr(klt_scales.OFFSETS[0])
NUM_OFFSETS = tl.constexpr(len(klt_scales.OFFSETS))
"""The offsets are consecutive numbers."""
TILE_NUMBERS = 2048
"""Directions times blocks in a tile."""
NUM_WARPS = 8


@triton.jit
def load_frequency(
    normal, rank, width, deviation, coefficient, block, num_blocks, PAGE_BLOCKS: tl.constexpr, NUM_CODED: tl.constexpr
):
    """(numbers [C, BLOCKS], widths [C], weights of their squares [C]) of coefficients; 0 if they are not coded."""
    row = tl.load(rank + coefficient).to(tl.int32)
    is_coded = row < NUM_CODED
    mask = is_coded[:, None] & (block < PAGE_BLOCKS)[None, :]
    x = tl.load(normal + row[:, None] * num_blocks + block[None, :], mask=mask, other=0.0)
    size = tl.load(deviation + coefficient)
    return x, tl.load(width + coefficient), tl.where(is_coded, size * size, 0.0)


@triton.jit(do_not_specialize=["num_blocks", "pages_per_head"], do_not_specialize_on_alignment=["pages"])
def klt_scales_kernel(
    normal, records, pages, rank, width, deviation, num_blocks, pages_per_head,
    BLOCKS: tl.constexpr, DIRECTIONS: tl.constexpr, HEAD_DIM: tl.constexpr, PAGE_BYTES: tl.constexpr,
    PAGE_BLOCKS: tl.constexpr, NUM_FRAMES: tl.constexpr, NUM_CODED: tl.constexpr,
):  # fmt: skip
    """Each program chooses the scales of some directions of a page: grid (pages, tiles of directions, heads).

    `normal` is [heads, NUM_CODED, num_blocks].
    """
    head = tl.program_id(2)
    direction = tl.program_id(1) * DIRECTIONS + tl.arange(0, DIRECTIONS)
    block = tl.arange(0, BLOCKS)
    first = head * NUM_FRAMES * HEAD_DIM + direction
    normal += head.to(tl.int64) * NUM_CODED * num_blocks + tl.program_id(0) * PAGE_BLOCKS
    energy = tl.zeros([DIRECTIONS], tl.float32)
    expected = tl.zeros([DIRECTIONS], tl.float32)
    peak = tl.zeros([DIRECTIONS], tl.float32)
    for frequency in range(NUM_FRAMES):
        x, bits, weight = load_frequency(
            normal, rank, width, deviation, first + frequency * HEAD_DIM, block, num_blocks, PAGE_BLOCKS, NUM_CODED
        )
        energy += tl.sum(x * x, axis=1) * weight
        expected += PAGE_BLOCKS * weight
        peak = tl.maximum(peak, tl.max(tl.abs(x), axis=1) / reach_of(bits))
    middle = rounded(scale_byte_of(tl.sqrt(energy / tl.maximum(expected, 1e-37))))
    covering = tl.ceil(scale_byte_of(peak))

    best = tl.zeros([DIRECTIONS], tl.float32)
    least = tl.full([DIRECTIONS], float("inf"), tl.float32)
    for attempt in range(NUM_OFFSETS + 1):  # not unrolled: all candidates at once do not fit into registers
        candidate = tl.where(attempt < NUM_OFFSETS, middle + (attempt + FIRST_OFFSET), covering)
        candidate = tl.clamp(candidate, 0.0, 255.0)
        scale = scale_of(candidate)
        error = tl.zeros([DIRECTIONS], tl.float32)
        for frequency in range(NUM_FRAMES):
            x, bits, weight = load_frequency(
                normal, rank, width, deviation, first + frequency * HEAD_DIM, block, num_blocks, PAGE_BLOCKS, NUM_CODED
            )
            miss = tl.where((block < PAGE_BLOCKS)[None, :], likely_miss(x / scale[:, None], bits[:, None]), 0.0)
            error += tl.sum(miss * miss, axis=1) * weight
        error *= scale * scale
        best = tl.where(error < least, candidate, best)
        least = tl.minimum(error, least)
    page = tl.load(pages + head * pages_per_head + tl.program_id(0)).to(tl.int64)
    tl.store(records + page * PAGE_BYTES + (PAGE_BYTES - HEAD_DIM) + direction, best.to(tl.uint8))


def choose_scales(normal_HKU: Tensor, records: Tensor, layout: KltLayout, pages_HP: Tensor) -> None:
    """Writes the scale bytes of the pages for the coefficients of `transform`."""
    constants = scales_constants(layout)
    num_heads, num_pages = pages_HP.shape
    klt_scales_kernel[(num_pages, layout.head_dim // constants["DIRECTIONS"], num_heads)](
        normal_HKU, records, pages_HP, layout.coding.rank_hN, layout.width_hN, layout.coding.deviation_h1F1D,
        normal_HKU.shape[2], pages_HP.stride(0), **constants, num_warps=NUM_WARPS,
    )  # fmt: skip


def scales_constants(layout: KltLayout) -> dict[str, int]:
    """Compile-time arguments of the kernel."""
    blocks = triton.next_power_of_2(layout.page_blocks)
    return {
        "BLOCKS": blocks,
        "DIRECTIONS": min(layout.head_dim, max(1, TILE_NUMBERS // blocks)),
        "HEAD_DIM": layout.head_dim,
        "PAGE_BYTES": layout.page_bytes,
        "PAGE_BLOCKS": layout.page_blocks,
        "NUM_FRAMES": layout.num_frames,
        "NUM_CODED": layout.coding.num_coded,
    }

"""Coefficients and scale bytes -> the codes of klt pages: all bytes of a record except its scale bytes.

Coefficients are stored in the order of their codes, so the codes of a byte are those of 8 / width consecutive numbers,
which belong to one coefficient or to two neighbouring ones.

Reference: `KltCodec._pack`. Here codes are always those of the nearest levels; the reference looks levels of 4 bits up
in a table of cells.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from pagedvid.codecs.klt.kernels.layout import KltLayout
from pagedvid.codecs.klt.kernels.levels import nearest, scale_of
from pagedvid.codecs.packing import WIDTHS

TILE_CODES = 1024
NUM_WARPS = 4


@triton.jit
def pack_codes(
    normal, record, scale_bytes, direction, num_blocks, first_rank, first_byte,
    WIDTH: tl.constexpr, COUNT: tl.constexpr, TILE_CODES: tl.constexpr, PAGE_BLOCKS: tl.constexpr,
):  # fmt: skip
    """Writes the codes of the COUNT coefficients of one width."""
    FIELDS: tl.constexpr = 8 // WIDTH
    TILE_BYTES: tl.constexpr = TILE_CODES // FIELDS
    NUM_BYTES: tl.constexpr = COUNT * PAGE_BLOCKS // FIELDS
    field = tl.arange(0, FIELDS)[None, :]
    for start in range(0, NUM_BYTES, TILE_BYTES):
        byte = start + tl.arange(0, TILE_BYTES)
        is_byte = byte < NUM_BYTES
        mask = is_byte[:, None]
        code = byte[:, None] * FIELDS + field
        rank = first_rank + code // PAGE_BLOCKS
        x = tl.load(normal + rank * num_blocks + code % PAGE_BLOCKS, mask=mask, other=0.0)
        scale_byte = tl.load(scale_bytes + tl.load(direction + rank, mask=mask, other=0), mask=mask, other=0)
        codes = nearest(x / scale_of(scale_byte.to(tl.float32)), WIDTH)
        tl.store(record + first_byte + byte, tl.sum(codes << (field * WIDTH), axis=1).to(tl.uint8), mask=is_byte)


@triton.jit(do_not_specialize=["num_blocks", "pages_per_head"], do_not_specialize_on_alignment=["pages"])
def klt_pack_kernel(
    normal, records, pages, direction, num_blocks, pages_per_head,
    TILE_CODES: tl.constexpr, HEAD_DIM: tl.constexpr, PAGE_BYTES: tl.constexpr, PAGE_BLOCKS: tl.constexpr,
    NUM_CODED: tl.constexpr, COUNTS: tl.constexpr,
):  # fmt: skip
    """Each program packs one page of one head: grid (pages, heads).

    `normal` is [heads, NUM_CODED, num_blocks]; COUNTS are the numbers of coefficients of 8, 4, 2 and 1 bits.
    """
    head = tl.program_id(1)
    page = tl.load(pages + head * pages_per_head + tl.program_id(0)).to(tl.int64)
    record = records + page * PAGE_BYTES
    scale_bytes = record + (PAGE_BYTES - HEAD_DIM)
    direction += head * NUM_CODED
    normal += head.to(tl.int64) * NUM_CODED * num_blocks + tl.program_id(0) * PAGE_BLOCKS
    rank = 0
    end = 0
    for number in tl.static_range(4):
        pack_codes(
            normal, record, scale_bytes, direction, num_blocks, rank, end,
            8 >> number, COUNTS[number], TILE_CODES, PAGE_BLOCKS,
        )  # fmt: skip
        rank += COUNTS[number]
        end += COUNTS[number] * PAGE_BLOCKS >> number
    for start in range(end, PAGE_BYTES - HEAD_DIM, TILE_CODES):
        byte = start + tl.arange(0, TILE_CODES)
        tl.store(record + byte, tl.zeros([TILE_CODES], tl.uint8), mask=byte < PAGE_BYTES - HEAD_DIM)


def pack(normal_HKU: Tensor, records: Tensor, layout: KltLayout, pages_HP: Tensor) -> None:
    """Writes the codes of the coefficients of `transform`, scaled by the scale bytes that the pages already hold."""
    num_heads, num_pages = pages_HP.shape
    klt_pack_kernel[(num_pages, num_heads)](
        normal_HKU, records, pages_HP, layout.coding.direction_h1K, normal_HKU.shape[2], pages_HP.stride(0),
        **pack_constants(layout), num_warps=NUM_WARPS,
    )  # fmt: skip


def pack_constants(layout: KltLayout) -> dict[str, Any]:
    """Compile-time arguments of the kernel."""
    return {
        "TILE_CODES": TILE_CODES,
        "HEAD_DIM": layout.head_dim,
        "PAGE_BYTES": layout.page_bytes,
        "PAGE_BLOCKS": layout.page_blocks,
        "NUM_CODED": layout.coding.num_coded,
        "COUNTS": tuple(layout.coding.segments.get(width, 0) for width in WIDTHS),
    }

"""Klt pages of one chunk -> tokens in a dense scratch; keys are rotated by their rotary angles on the way.

Reference: `KltCodec.decode`. Each program decodes one page of one head, some blocks at a time:

    codes of every frequency --(levels, deviations, scales)--> coefficients [directions, blocks]
        --(cosines)--> one frame after the other --(synthesis, + mean)--> channels --(rotate)--> tokens

The codes of a coefficient are stored next to each other, so neighbouring threads take neighbouring blocks. The
synthesis, which is much larger than a page, is read once and serves all frames and blocks of the page.

For a bfloat16 scratch the products with the synthesis are taken in float16, at twice the speed of TF32 and with as many
bits in each factor. Since the range of float16 is small, both factors are scaled to about 1 first: each row of the
synthesis by its largest entry, the coefficients by the largest unit of the page. The relative error of each factor is
then 2^-11 at most. The energy of both errors together is a thousandth of what even codes of 8 bits lose, whether or not
the synthesis is orthogonal. For a float32 scratch the products are taken in float32.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from pagedvid.codecs.klt.kernels.layout import KltLayout
from pagedvid.codecs.klt.scales import SCALE_ONE, SCALES_PER_OCTAVE
from pagedvid.codecs.triton_decode import (
    COUNTS,
    UNALIGNED,
    decode_arguments,
    load_angles,
    out_of_chunk,
    rotate,
    store_halves,
)
from pagedvid.rotary.angles import Angles

ONE = tl.constexpr(float(SCALE_ONE))
PER_OCTAVE = tl.constexpr(float(SCALES_PER_OCTAVE))
BLOCKS = 16
"""Blocks decoded at once, the rows of one product on tensor cores. Pages have 43 or 22 blocks: more at once would waste
work on padding."""


@triton.jit
def load_synthesis(synthesis, direction, channel, HEAD_DIM: tl.constexpr, HALF: tl.constexpr, MATMUL: tl.constexpr):
    """Both halves of the channels, [D, HALF] each, with rows divided by their largest entry; and these, float32 [D]."""
    places = synthesis + direction[:, None] * HEAD_DIM + channel[None, :]
    first = tl.load(places)
    second = tl.load(places + HALF)
    largest = tl.max(tl.maximum(tl.abs(first), tl.abs(second)), axis=1)
    inverse = (1.0 / largest)[:, None]
    return (first * inverse).to(MATMUL), (second * inverse).to(MATMUL), largest


@triton.jit
def load_coefficients(record, levels, first_bit, width, unit, block):
    """Coefficients float32 [N, BLOCKS] of the blocks `block` of a page: their levels times `unit` [N].

    first_bit, width: int32 [N]. Coefficients of width 0 are 0, and nothing is read for them.
    """
    is_coded = (width > 0)[:, None]
    bit = first_bit[:, None] + width[:, None] * block[None, :]
    byte = tl.load(record + (bit >> 3), mask=is_coded, other=0).to(tl.int32)
    num_levels = (1 << width)[:, None]
    code = (byte >> (bit & 7)) & (num_levels - 1)
    return tl.load(levels + (num_levels - 2 + code), mask=is_coded, other=0.0) * unit[:, None]


@triton.jit(do_not_specialize=COUNTS, do_not_specialize_on_alignment=UNALIGNED)
def klt_decode_kernel(
    records, first_bits, widths, levels, deviations, cosines, synthesis, mean,
    pages, cos, sin, tables, inverse_scales, out, num_tokens, num_heads, pages_per_head,
    chunks_per_range, out_range_stride, out_chunk_stride, out_token_stride, out_head_stride,
    BLOCKS: tl.constexpr, HEAD_DIM: tl.constexpr, PAGE_BYTES: tl.constexpr, PAGE_BLOCKS: tl.constexpr,
    FRAMES: tl.constexpr, TOKENS_PER_FRAME: tl.constexpr, MATMUL: tl.constexpr, ROTATE: tl.constexpr,
    SCALED: tl.constexpr,
):  # fmt: skip
    """Each program decodes one page: grid (pages of a head, chunks, heads). See `decode_klt`."""
    HALF: tl.constexpr = HEAD_DIM // 2
    number = tl.program_id(0)
    chunk = tl.program_id(1)
    head = tl.program_id(2)
    direction = tl.arange(0, HEAD_DIM)
    channel = tl.arange(0, HALF)
    record = records + tl.load(pages + (chunk * num_heads + head) * pages_per_head + number).to(tl.int64) * PAGE_BYTES
    out = out_of_chunk(out, chunk, chunks_per_range, out_range_stride, out_chunk_stride)
    out += head.to(tl.int64) * out_head_stride
    first_bits += head * FRAMES * HEAD_DIM + direction
    widths += head * FRAMES * HEAD_DIM + direction
    deviations += head * FRAMES * HEAD_DIM + direction
    mean_first = tl.load(mean + head * HEAD_DIM + channel)[None, :]
    mean_second = tl.load(mean + head * HEAD_DIM + HALF + channel)[None, :]
    synthesis_first, synthesis_second, weight = load_synthesis(
        synthesis + head * HEAD_DIM * HEAD_DIM, direction, channel, HEAD_DIM, HALF, MATMUL
    )
    scale_byte = tl.load(record + (PAGE_BYTES - HEAD_DIM) + direction).to(tl.float32)
    weight *= tl.exp2((scale_byte - ONE) / PER_OCTAVE)
    deviation = tl.load(deviations)
    for frequency in tl.static_range(1, FRAMES):
        deviation = tl.maximum(deviation, tl.load(deviations + frequency * HEAD_DIM))
    largest = tl.max(deviation * weight, axis=0)
    weight /= largest

    num_blocks = tl.cdiv(num_tokens, FRAMES * TOKENS_PER_FRAME) * TOKENS_PER_FRAME - number * PAGE_BLOCKS
    for first_block in range(0, tl.minimum(num_blocks, PAGE_BLOCKS), BLOCKS):
        in_page = first_block + tl.arange(0, BLOCKS)
        block = number * PAGE_BLOCKS + in_page
        first_token = block // TOKENS_PER_FRAME * (FRAMES * TOKENS_PER_FRAME) + block % TOKENS_PER_FRAME
        coefficients = tl.tuple(())
        for frequency in tl.static_range(FRAMES):
            unit = tl.load(deviations + frequency * HEAD_DIM) * weight
            coefficients += (
                load_coefficients(
                    record, levels, tl.load(first_bits + frequency * HEAD_DIM), tl.load(widths + frequency * HEAD_DIM),
                    unit, tl.minimum(in_page, PAGE_BLOCKS - 1),
                ),
            )  # fmt: skip
        for frame in tl.static_range(FRAMES):
            y = coefficients[0] * tl.load(cosines + frame)
            for frequency in tl.static_range(1, FRAMES):
                y += coefficients[frequency] * tl.load(cosines + frequency * FRAMES + frame)
            y = tl.trans(y.to(MATMUL))
            first = tl.dot(y, synthesis_first, input_precision="tf32x3") * largest + mean_first
            second = tl.dot(y, synthesis_second, input_precision="tf32x3") * largest + mean_second
            token = first_token + frame * TOKENS_PER_FRAME
            is_token = (in_page < PAGE_BLOCKS) & (token < num_tokens)
            if ROTATE:
                cos_tile, sin_tile = load_angles(cos, sin, tables, chunk, token, num_tokens, HALF)
                first, second = rotate(first, second, cos_tile, sin_tile)
            rows = out + token.to(tl.int64) * out_token_stride
            store_halves(rows, first, second, is_token, inverse_scales + chunk * num_heads + head, SCALED)


def decode_klt(
    records: Tensor,
    layout: KltLayout,
    pages_SHP: Tensor,
    num_tokens: int,
    out_EJnHD: Tensor,
    angles: Angles | None = None,
    inverse_scales_SH: Tensor | None = None,
) -> None:
    """`PageKernels.decode` for klt pages.

    Raises ShapeError for other heads than the layout's, or pages that do not fit the tokens.
    """
    layout.check((num_tokens, *out_EJnHD.shape[3:]), pages_SHP)
    coding = layout.coding
    num_chunks, num_heads, num_pages = pages_SHP.shape
    klt_decode_kernel[(num_pages, num_chunks, num_heads)](
        records, layout.first_bit_hN, layout.width_hN, layout.levels, coding.deviation_h1F1D,
        coding.cosines_FF, coding.synthesis_hDD, coding.mean_h1D,
        *decode_arguments(pages_SHP, num_tokens, out_EJnHD, angles, inverse_scales_SH),
        **klt_decode_constants(layout, out_EJnHD.dtype, angles, inverse_scales_SH),
        num_warps=num_warps(layout, out_EJnHD.dtype), num_stages=1,
    )  # fmt: skip


def klt_decode_constants(
    layout: KltLayout, out: torch.dtype, angles: Angles | None, inverse_scales_SH: Tensor | None
) -> dict[str, Any]:
    """Compile-time arguments of the kernel."""
    return {
        "BLOCKS": BLOCKS,
        "HEAD_DIM": layout.head_dim,
        "PAGE_BYTES": layout.page_bytes,
        "PAGE_BLOCKS": layout.page_blocks,
        "FRAMES": layout.num_frames,
        "TOKENS_PER_FRAME": layout.tokens_per_frame,
        "MATMUL": tl.float32 if out == torch.float32 else tl.float16,
        "ROTATE": angles is not None,
        "SCALED": inverse_scales_SH is not None,
    }


def num_warps(layout: KltLayout, out: torch.dtype) -> int:
    """The fewest warps that have registers for the coefficients of all frames, as each reads all rows of a product."""
    few = layout.num_frames <= 3 and out != torch.float32
    return layout.head_dim // (32 if few else 16)

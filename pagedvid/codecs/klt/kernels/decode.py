"""Klt pages -> tokens; keys are rotated by their rotary angles on the way.

Reference: `KltCodec.decode`. Each program decodes one page of one head, some blocks at a time:

    codes of every frequency --(levels, deviations, scales)--> coefficients [directions, blocks]
        --(cosines)--> one frame after the other --(synthesis, + mean)--> channels --(rotate)--> tokens

The codes of a coefficient are stored next to each other, in `width` bits each. So a thread takes the codes of four
blocks out of one word of 32 bits, wherever it begins. The levels of all widths are in one table, the level of code c at
2^width + c, which is one logical operation away from the bits. Frames t and F - 1 - t have the same cosines, with other
signs at odd frequencies, so both are made of two sums. The synthesis, which is much larger than a page, is read once
and serves all frames and blocks of the page.

For tokens in 16 bits or fewer the products with the synthesis are taken in float16, at twice the speed of TF32 and with
as many bits in each factor. Since the range of float16 is small, both factors are scaled to about 1 first: each row of
the synthesis by its largest entry, the coefficients by the largest unit of the page. The relative error of each factor
is then 2^-11 at most. The energy of both errors together is a thousandth of what even codes of 8 bits lose, whether or
not the synthesis is orthogonal. For float32 tokens the products are taken in float32.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from pagedvid.codecs.klt.blocks import cosine_transform
from pagedvid.codecs.klt.kernels.layout import KltLayout
from pagedvid.codecs.klt.kernels.levels import scale_of
from pagedvid.codecs.triton_decode import (
    COUNTS,
    UNALIGNED,
    decode_arguments,
    load_angles,
    out_of_chunk,
    out_of_head,
    rotate,
    store_halves,
)
from pagedvid.rotary.angles import Angles

BLOCKS = 16
"""Blocks decoded at once, the rows of one product on tensor cores. Pages have 43 or 22 blocks: more at once would waste
work on padding."""


@triton.jit
def load_bits(words, bit):
    """The 32 bits from `bit` on of 32-bit words, uint32."""
    place = words + (bit >> 5)
    low, high = tl.load(place).to(tl.uint32).to(tl.uint64), tl.load(place + 1).to(tl.uint32).to(tl.uint64)
    return ((low | (high << 32)) >> (bit & 31).to(tl.uint64)).to(tl.uint32)


@triton.jit
def load_coefficients(words, levels, bit, width, unit):
    """Coefficients float32 [N, 4 * GROUPS]: their levels times `unit` [N, 1].

    `bit` [N, GROUPS]: where the first of four codes of a group begins; width [N, 1], int32.
    """
    num_levels = (1 << width).to(tl.uint32)
    codes = load_bits(words, bit)
    a = load_level(levels, codes, num_levels) * unit
    b = load_level(levels, codes >> width.to(tl.uint32), num_levels) * unit
    c = load_level(levels, codes >> (2 * width).to(tl.uint32), num_levels) * unit
    d = load_level(levels, codes >> (3 * width).to(tl.uint32), num_levels) * unit
    return tl.reshape(tl.join(tl.join(a, c), tl.join(b, d)), [bit.shape[0], 4 * bit.shape[1]])


@triton.jit
def load_level(levels, codes, num_levels):
    """The level, float32, of the code in the lowest bits."""
    return tl.load(levels + ((codes & (num_levels - 1)) | num_levels).to(tl.int32))


@triton.jit
def frames_of(coefficients, FRAMES: tl.constexpr, RATIOS: tl.constexpr, MATMUL: tl.constexpr):
    """What the cosine transform makes of coefficients that are given times the cosine of frame 0: a tensor a frame.

    Frames t and F - 1 - t are the sum and the difference of their even and odd frequencies.
    """
    first_half, second_half = tl.tuple(()), tl.tuple(())
    for frame in tl.static_range((FRAMES + 1) // 2):
        even = coefficients[0]
        for frequency in tl.static_range(2, FRAMES, 2):
            even += coefficients[frequency] * RATIOS[frequency * FRAMES + frame]
        if 2 * frame == FRAMES - 1:  # the middle one, where odd frequencies are 0
            first_half += (even.to(MATMUL),)
        else:
            odd = coefficients[1] * RATIOS[FRAMES + frame]
            for frequency in tl.static_range(3, FRAMES, 2):
                odd += coefficients[frequency] * RATIOS[frequency * FRAMES + frame]
            first_half += ((even + odd).to(MATMUL),)
            second_half = tl.tuple(((even - odd).to(MATMUL),)) + second_half
    return first_half + second_half


@triton.jit(do_not_specialize=COUNTS, do_not_specialize_on_alignment=UNALIGNED)
def klt_decode_kernel(
    words, first_bits, widths, levels, units, peaks, weights, synthesis, mean,
    pages, cos, sin, tables, inverse_scales, out_heads, out, num_tokens, num_heads, pages_per_head,
    chunks_per_range, out_range_stride, out_chunk_stride, out_token_stride, out_head_stride,
    BLOCKS: tl.constexpr, HEAD_DIM: tl.constexpr, PAGE_BYTES: tl.constexpr, PAGE_BLOCKS: tl.constexpr,
    FRAMES: tl.constexpr, TOKENS_PER_FRAME: tl.constexpr, RATIOS: tl.constexpr, MATMUL: tl.constexpr,
    ROTATE: tl.constexpr, SCALED: tl.constexpr, PLACED: tl.constexpr,
):  # fmt: skip
    """Each program decodes one page: grid (pages of a head, chunks, heads). See `decode_klt`."""
    HALF: tl.constexpr = HEAD_DIM // 2
    number = tl.program_id(0)
    chunk = tl.program_id(1)
    head = tl.program_id(2)
    direction = tl.arange(0, HEAD_DIM)
    channel = tl.arange(0, HALF)
    mean += head * HEAD_DIM + channel
    page = tl.load(pages + (chunk * num_heads + head) * pages_per_head + number).to(tl.int64)
    words += page * (PAGE_BYTES // 4)
    out = out_of_chunk(out, chunk, chunks_per_range, out_range_stride, out_chunk_stride)
    out = out_of_head(out, out_heads, head, out_head_stride, PLACED)
    inverse_scales += chunk * num_heads + head
    synthesis_rows = synthesis + head * HEAD_DIM * HEAD_DIM + direction[:, None] * HEAD_DIM + channel[None, :]
    first_synthesis, second_synthesis = tl.load(synthesis_rows), tl.load(synthesis_rows + HALF)

    scale_bytes = tl.load(words + ((PAGE_BYTES - HEAD_DIM) + direction) // 4) >> 8 * (direction % 4)
    scale = scale_of((scale_bytes & 255).to(tl.float32))
    if MATMUL.is_fp16():
        scale *= tl.load(weights + head * HEAD_DIM + direction)
    largest = tl.max(tl.load(peaks + head * HEAD_DIM + direction) * scale, axis=0)
    scale /= largest
    of_head = head * FRAMES * HEAD_DIM + direction
    bits_of, widths_of, units_of = tl.tuple(()), tl.tuple(()), tl.tuple(())
    for frequency in tl.static_range(FRAMES):
        places = of_head + frequency * HEAD_DIM
        bits_of += (tl.load(first_bits + places)[:, None],)
        widths_of += (tl.load(widths + places)[:, None],)
        units_of += ((tl.load(units + places) * scale)[:, None],)

    group = 4 * tl.arange(0, BLOCKS // 4)[None, :]
    num_blocks = tl.cdiv(num_tokens, FRAMES * TOKENS_PER_FRAME) * TOKENS_PER_FRAME - number * PAGE_BLOCKS
    for first_block in tl.range(0, tl.minimum(num_blocks, PAGE_BLOCKS), BLOCKS, disable_licm=True):
        in_page = first_block + tl.arange(0, BLOCKS)
        block = number * PAGE_BLOCKS + in_page
        first_token = block // TOKENS_PER_FRAME * (FRAMES * TOKENS_PER_FRAME) + block % TOKENS_PER_FRAME
        frames = tl.tuple(())
        for _frame in tl.static_range(FRAMES):
            frames += (tl.zeros([HEAD_DIM, BLOCKS], MATMUL),)
        # This `if`, always true, hides from the compiler that the operands of products were loaded as 8-bit codes: it
        # would otherwise choose a layout for 8-bit operands, although these are float16.
        if MATMUL.is_fp32() or first_block < num_blocks:
            coefficients = tl.tuple(())
            for frequency in tl.static_range(FRAMES):
                width = widths_of[frequency]
                bit = bits_of[frequency] + width * (first_block + group)
                coefficients += (load_coefficients(words, levels, bit, width, units_of[frequency]),)
            frames = frames_of(coefficients, FRAMES, RATIOS, MATMUL)
        for frame in tl.static_range(FRAMES):
            y = tl.trans(frames[frame])
            first = tl.dot(y, first_synthesis, input_precision="tf32x3") * largest + tl.load(mean)[None, :]
            second = tl.dot(y, second_synthesis, input_precision="tf32x3") * largest + tl.load(mean + HALF)[None, :]
            token = first_token + frame * TOKENS_PER_FRAME
            if ROTATE:
                cos_tile, sin_tile = load_angles(cos, sin, tables, chunk, token, num_tokens, HALF)
                first, second = rotate(first, second, cos_tile, sin_tile)
            rows = out + token.to(tl.int64) * out_token_stride
            mask = (in_page < PAGE_BLOCKS) & (token < num_tokens)
            store_halves(rows, first, second, mask, inverse_scales, SCALED)


def decode_klt(
    records: Tensor,
    layout: KltLayout,
    pages_SHP: Tensor,
    num_tokens: int,
    out_EJnHD: Tensor,
    angles: Angles | None = None,
    inverse_scales_SH: Tensor | None = None,
    out_heads_H: Tensor | None = None,
) -> None:
    """`PageKernels.decode` for klt pages.

    Raises ShapeError for other heads than the layout's, or pages that do not fit the tokens.
    """
    layout.check((num_tokens, pages_SHP.shape[1], out_EJnHD.shape[4]), pages_SHP)
    num_chunks, num_heads, num_pages = pages_SHP.shape
    constants = klt_decode_constants(layout, out_EJnHD.dtype, angles, inverse_scales_SH, out_heads_H)
    is_half = constants["MATMUL"] == tl.float16
    klt_decode_kernel[(num_pages, num_chunks, num_heads)](
        records.view(torch.int32), layout.first_bit_hN, layout.read_width_hN, layout.levels, layout.unit_hN,
        layout.peak_hD, layout.weight_hD, layout.synthesis_half_hDD if is_half else layout.coding.synthesis_hDD,
        layout.coding.mean_h1D,
        *decode_arguments(pages_SHP, num_tokens, out_EJnHD, angles, inverse_scales_SH, out_heads_H),
        **constants, num_warps=num_warps(layout, out_EJnHD.dtype), num_stages=1,
    )  # fmt: skip


def klt_decode_constants(
    layout: KltLayout,
    out: torch.dtype,
    angles: Angles | None,
    inverse_scales_SH: Tensor | None,
    out_heads_H: Tensor | None = None,
) -> dict[str, Any]:
    """Compile-time arguments of the kernel."""
    return {
        "BLOCKS": BLOCKS,
        "HEAD_DIM": layout.head_dim,
        "PAGE_BYTES": layout.page_bytes,
        "PAGE_BLOCKS": layout.page_blocks,
        "FRAMES": layout.num_frames,
        "TOKENS_PER_FRAME": layout.tokens_per_frame,
        "RATIOS": _ratios(layout.num_frames),
        "MATMUL": tl.float32 if out == torch.float32 else tl.float16,
        "ROTATE": angles is not None,
        "SCALED": inverse_scales_SH is not None,
        "PLACED": out_heads_H is not None,
    }


def num_warps(layout: KltLayout, out: torch.dtype) -> int:
    """The fewest warps that have registers for the coefficients of all frames, as each reads all rows of a product."""
    few = layout.num_frames <= 3 and out != torch.float32
    return layout.head_dim // (32 if few else 16)


@lru_cache(maxsize=64)
def _ratios(num_frames: int) -> tuple[float, ...]:
    """The cosines of every frame over those of the first, frequency by frequency."""
    cosines_FF = cosine_transform(num_frames)
    return tuple((cosines_FF / cosines_FF[:, :1]).flatten().tolist())

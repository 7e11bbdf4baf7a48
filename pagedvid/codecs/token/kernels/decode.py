"""Pages of per-token codes -> tokens, multiplied by the Hadamard matrix again if the codec uses it.

Reference: `TokenCodec.decode` and `HadamardCodec.decode`. Keys are stored after rotary embedding; if their positions
have changed since, they are re-rotated to their current positions here.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from pagedvid.codecs.token.kernels.hadamard import times_hadamard
from pagedvid.codecs.token.kernels.layout import TokenLayout
from pagedvid.codecs.triton_common import matmul_type
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

BLOCK_TOKENS = 32
NUM_WARPS = 4


@triton.jit
def load_half(
    records, typed, page, place, HALF_NUMBER: tl.constexpr, HEAD_DIM: tl.constexpr, PAGE_BYTES: tl.constexpr,
    PAGE_TOKENS: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, RUN: tl.constexpr,
):  # fmt: skip
    """The first or second half (0, 1) of the channels of the tokens at `place` of `page` (int64), float32 [N, D/2]."""
    HALF: tl.constexpr = HEAD_DIM // 2
    NUM_GROUPS: tl.constexpr = HEAD_DIM // GROUP
    CODE_BYTES: tl.constexpr = PAGE_TOKENS * HEAD_DIM * BITS // 8
    channel = HALF_NUMBER * HALF + tl.arange(0, HALF // RUN)[None, :] * RUN
    number = place[:, None] * HEAD_DIM + channel
    bytes_of_run = (page[:, None] * PAGE_BYTES + number % CODE_BYTES)[:, :, None] + tl.arange(0, RUN)[None, None, :]
    byte = tl.load(records + bytes_of_run).to(tl.int32)
    code = (byte >> (number // CODE_BYTES * BITS)[:, :, None]) & ((1 << BITS) - 1)
    first_step_size = page * (PAGE_BYTES // 2) + CODE_BYTES // 2 + place * NUM_GROUPS
    step_sizes = typed + first_step_size[:, None] + channel // GROUP
    step_size = tl.load(step_sizes).to(tl.float32)[:, :, None]
    zero_point = tl.load(step_sizes + PAGE_TOKENS * NUM_GROUPS).to(tl.float32)[:, :, None]
    return tl.reshape(zero_point + step_size * code.to(tl.float32), [place.shape[0], HALF])


@triton.jit(do_not_specialize=COUNTS, do_not_specialize_on_alignment=UNALIGNED)
def decode_token_kernel(
    records, typed, pages, cos, sin, tables, inverse_scales, out_heads, out, num_tokens, num_heads, pages_per_head,
    chunks_per_range, out_range_stride, out_chunk_stride, out_token_stride, out_head_stride,
    BLOCK_TOKENS: tl.constexpr, HEAD_DIM: tl.constexpr, PAGE_BYTES: tl.constexpr, PAGE_TOKENS: tl.constexpr,
    BITS: tl.constexpr, GROUP: tl.constexpr, RUN: tl.constexpr, HADAMARD: tl.constexpr, MATMUL: tl.constexpr,
    HEADS: tl.constexpr, ROTATE: tl.constexpr, SCALED: tl.constexpr, PLACED: tl.constexpr,
):  # fmt: skip
    """Each program decodes one block of tokens. See `decode_token` and codecs/triton_decode.py."""
    HALF: tl.constexpr = HEAD_DIM // 2
    chunk = tl.program_id(1)
    token = tl.program_id(0) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    existing = tl.minimum(token, num_tokens - 1)
    place = existing % PAGE_TOKENS
    rows = out_of_chunk(out, chunk, chunks_per_range, out_range_stride, out_chunk_stride)
    rows += token.to(tl.int64) * out_token_stride
    if ROTATE:
        cos_tile, sin_tile = load_angles(cos, sin, tables, chunk, token, num_tokens, HALF)
    first_head = tl.program_id(2) * HEADS
    for head in range(first_head, tl.minimum(first_head + HEADS, num_heads)):
        page = tl.load(pages + (chunk * num_heads + head) * pages_per_head + existing // PAGE_TOKENS).to(tl.int64)
        x = load_half(records, typed, page, place, 0, HEAD_DIM, PAGE_BYTES, PAGE_TOKENS, BITS, GROUP, RUN)
        y = load_half(records, typed, page, place, 1, HEAD_DIM, PAGE_BYTES, PAGE_TOKENS, BITS, GROUP, RUN)
        if HADAMARD:
            x, y = tl.split(tl.permute(times_hadamard(x, y, HEAD_DIM, MATMUL), (0, 2, 1)))
        if ROTATE:
            x, y = rotate(x, y, cos_tile, sin_tile)
        head_rows = out_of_head(rows, out_heads, head, out_head_stride, PLACED)
        store_halves(head_rows, x, y, token < num_tokens, inverse_scales + chunk * num_heads + head, SCALED)


def decode_token(
    records: Tensor,
    layout: TokenLayout,
    pages_SHP: Tensor,
    num_tokens: int,
    out_EJnHD: Tensor,
    angles: Angles | None = None,
    inverse_scales_SH: Tensor | None = None,
    out_heads_H: Tensor | None = None,
) -> None:
    """`PageKernels.decode` for pages of per-token codes."""
    decode_token_kernel[decode_grid(triton.cdiv(num_tokens, BLOCK_TOKENS), pages_SHP)](
        records, layout.view(records),
        *decode_arguments(pages_SHP, num_tokens, out_EJnHD, angles, inverse_scales_SH, out_heads_H),
        **decode_token_constants(layout, angles, inverse_scales_SH, out_heads_H), num_warps=NUM_WARPS,
    )  # fmt: skip


def decode_token_constants(
    layout: TokenLayout, angles: Angles | None, inverse_scales_SH: Tensor | None, out_heads_H: Tensor | None = None
) -> dict[str, Any]:
    """Compile-time arguments of the kernel."""
    return {
        "BLOCK_TOKENS": BLOCK_TOKENS,
        **layout.constants(),
        "RUN": min(layout.head_dim * layout.bits // 8, layout.group, layout.head_dim // 2),
        "HADAMARD": layout.matrix is not None,
        "MATMUL": matmul_type(torch.bfloat16),
        **decode_options(angles, inverse_scales_SH, out_heads_H),
    }

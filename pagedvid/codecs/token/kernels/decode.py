"""Pages of per-token codes -> tokens in a dense scratch, multiplied by the Hadamard matrix again if the codec uses it.

Reference: `TokenCodec.decode` and `HadamardCodec.decode`. Keys are stored after rotary embedding; if their positions
have changed since, they are rotated on to their current positions here.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from pagedvid.codecs.token.kernels.hadamard import times_hadamard
from pagedvid.codecs.token.kernels.layout import TokenLayout
from pagedvid.codecs.triton_common import matmul_type, store_halves
from pagedvid.rotary.axis_tables import AngleTables
from pagedvid.rotary.kernels import angle_constants, angle_tensors, load_angles, rotate

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


@triton.jit(do_not_specialize=["num_tokens", "pages_per_head", "frame_row"], do_not_specialize_on_alignment=["pages"])
def decode_token_kernel(
    records, typed, pages, cos, sin, axes, out, num_tokens, pages_per_head, frame_row, out_token_stride,
    out_head_stride,
    BLOCK_TOKENS: tl.constexpr, HEAD_DIM: tl.constexpr, PAGE_BYTES: tl.constexpr, PAGE_TOKENS: tl.constexpr,
    BITS: tl.constexpr, GROUP: tl.constexpr, RUN: tl.constexpr, HADAMARD: tl.constexpr, MATMUL: tl.constexpr,
    ROTATE: tl.constexpr, FRAME_TOKENS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Each program decodes one block of tokens of one head: grid (blocks of tokens, heads). See `decode_token`."""
    HALF: tl.constexpr = HEAD_DIM // 2
    head = tl.program_id(1)
    token = tl.program_id(0) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    is_token = token < num_tokens
    existing = tl.minimum(token, num_tokens - 1)
    page = tl.load(pages + head * pages_per_head + existing // PAGE_TOKENS).to(tl.int64)
    place = existing % PAGE_TOKENS
    x = load_half(records, typed, page, place, 0, HEAD_DIM, PAGE_BYTES, PAGE_TOKENS, BITS, GROUP, RUN)
    y = load_half(records, typed, page, place, 1, HEAD_DIM, PAGE_BYTES, PAGE_TOKENS, BITS, GROUP, RUN)
    if HADAMARD:
        x, y = tl.split(tl.permute(times_hadamard(x, y, HEAD_DIM, MATMUL), (0, 2, 1)))
    if ROTATE:
        cos_tile, sin_tile = load_angles(cos, sin, axes, token, frame_row, is_token, HALF, FRAME_TOKENS, WIDTH)
        x, y = rotate(x, y, cos_tile, sin_tile)
    store_halves(out + token.to(tl.int64) * out_token_stride + head.to(tl.int64) * out_head_stride, x, y, is_token)


def decode_token(
    records: Tensor,
    layout: TokenLayout,
    pages_HP: Tensor,
    out_nHD: Tensor,
    angles: AngleTables | None = None,
    frame_row: int = 0,
) -> None:
    """Writes the tokens of the pages `pages_HP` int32 [H, P], in order, to `out_nHD` [n, H, D], D contiguous.

    `records`: the pool, uint8 [num_pages, page_bytes]. `angles`: tables of the angles by which the tokens are rotated;
    `frame_row` is the row of their first frame.
    """
    num_tokens, num_heads, _ = out_nHD.shape
    decode_token_kernel[(triton.cdiv(num_tokens, BLOCK_TOKENS), num_heads)](
        records, layout.view(records), pages_HP,
        *angle_tensors(angles, records), out_nHD, num_tokens, pages_HP.stride(0), frame_row, *out_nHD.stride()[:2],
        **decode_token_constants(layout, angles), num_warps=NUM_WARPS,
    )  # fmt: skip


def decode_token_constants(layout: TokenLayout, angles: AngleTables | None) -> dict[str, Any]:
    """Compile-time arguments of the kernel."""
    return {
        "BLOCK_TOKENS": BLOCK_TOKENS,
        **layout.constants(),
        "RUN": min(layout.head_dim * layout.bits // 8, layout.group, layout.head_dim // 2),
        "HADAMARD": layout.matrix is not None,
        "MATMUL": matmul_type(torch.bfloat16),
        **angle_constants(angles),
    }

"""Keys or values of a chunk -> pages of per-token codes, in two launches: codes of one byte each are made, then packed.

Reference: `TokenCodec.encode`, with which the bytes agree, and `HadamardCodec.encode`, which sums its products in
another order: for random tokens, about one step size or zero point in some thousands is the next fp16 number, and one
code in 100 000 is the next code.

The codes that share a byte belong to tokens far apart in the page (a quarter of it for 2 bits), and in general to other
channels. So codes pass through a buffer of one byte each, which fits into the second-level cache and can be read in any
order.

Nothing here waits for the device: values that no page can hold (NaN, infinity, beyond fp16) set flags, which the caller
checks once, at the end of the step.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from pagedvid.codecs.token.kernels.hadamard import times_hadamard
from pagedvid.codecs.token.kernels.layout import TokenLayout
from pagedvid.codecs.triton_common import LIMIT, ROUND, matmul_type, round_down_fp16, round_up_fp16

BLOCK_TOKENS = 32
BLOCK_BYTES = 1024
NUM_WARPS = 4


@triton.jit
def load_rows(x, token, token_stride, HEAD_DIM: tl.constexpr, HADAMARD: tl.constexpr, MATMUL: tl.constexpr):
    """Some tokens, float32 [N, D], multiplied by the Hadamard matrix if HADAMARD."""
    places = x + token.to(tl.int64)[:, None] * token_stride
    if HADAMARD:
        half = tl.arange(0, HEAD_DIM // 2)[None, :]
        first = tl.load(places + half).to(tl.float32)
        second = tl.load(places + HEAD_DIM // 2 + half).to(tl.float32)
        rows = tl.reshape(times_hadamard(first, second, HEAD_DIM, MATMUL), [token.shape[0], HEAD_DIM])
    else:
        rows = tl.load(places + tl.arange(0, HEAD_DIM)[None, :]).to(tl.float32)
    return rows


@triton.jit(
    do_not_specialize=["num_tokens", "padded_tokens", "pages_per_head"], do_not_specialize_on_alignment=["pages"]
)
def quantize_token_kernel(
    x, typed, pages, codes, bad, num_tokens, padded_tokens, pages_per_head, x_token_stride, x_head_stride,
    BLOCK_TOKENS: tl.constexpr, HEAD_DIM: tl.constexpr, PAGE_BYTES: tl.constexpr, PAGE_TOKENS: tl.constexpr,
    BITS: tl.constexpr, GROUP: tl.constexpr, HADAMARD: tl.constexpr, MATMUL: tl.constexpr,
):  # fmt: skip
    """Writes codes, one per byte, and the step sizes and zero points of pages; see `encode_token`.

    Each program quantizes one block of tokens of one head: grid (blocks of tokens, heads).
    """
    NUM_GROUPS: tl.constexpr = HEAD_DIM // GROUP
    LEVELS: tl.constexpr = (1 << BITS) - 1
    FIRST_STEP_SIZE: tl.constexpr = PAGE_TOKENS * HEAD_DIM * BITS // 16
    head = tl.program_id(1)
    # Places after the last token repeat it; places after the last page are not written.
    token = tl.program_id(0) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    has_place = token < padded_tokens
    x += head.to(tl.int64) * x_head_stride
    rows = load_rows(x, tl.minimum(token, num_tokens - 1), x_token_stride, HEAD_DIM, HADAMARD, MATMUL)
    grouped = tl.reshape(rows, [BLOCK_TOKENS, NUM_GROUPS, GROUP])
    low = tl.min(grouped, axis=2)
    high = tl.max(grouped, axis=2)
    # Checked value by value, since `low` and `high` ignore NaN; the comparison is false for NaN.
    is_bad = tl.max(tl.max(tl.where(tl.abs(rows) < LIMIT, 0, 1), axis=1), axis=0)
    tl.store(bad + head * tl.num_programs(0) + tl.program_id(0), is_bad.to(tl.uint8))

    zero_point = round_down_fp16(low)
    step_size = round_up_fp16(tl.div_rn(high - zero_point.to(tl.float32), tl.full(low.shape, LEVELS, tl.float32)))
    page = tl.load(pages + head * pages_per_head + token // PAGE_TOKENS, mask=has_place, other=0).to(tl.int64)
    first_step_size = page * (PAGE_BYTES // 2) + FIRST_STEP_SIZE + token % PAGE_TOKENS * NUM_GROUPS
    step_sizes = typed + first_step_size[:, None] + tl.arange(0, NUM_GROUPS)[None, :]
    tl.store(step_sizes, step_size, mask=has_place[:, None])
    tl.store(step_sizes + PAGE_TOKENS * NUM_GROUPS, zero_point, mask=has_place[:, None])

    divisor = tl.where(step_size == 0.0, 1.0, step_size.to(tl.float32))[:, :, None]
    scaled = tl.div_rn(grouped - zero_point.to(tl.float32)[:, :, None], tl.zeros_like(grouped) + divisor)
    code = tl.minimum(tl.maximum((scaled + ROUND) - ROUND, 0.0), LEVELS).to(tl.uint8)
    places = codes + (head.to(tl.int64) * padded_tokens + token)[:, None] * HEAD_DIM + tl.arange(0, HEAD_DIM)[None, :]
    tl.store(places, tl.reshape(code, rows.shape), mask=has_place[:, None])


@triton.jit(do_not_specialize=["pages_per_head"], do_not_specialize_on_alignment=["pages"])
def pack_token_kernel(
    codes, records, pages, pages_per_head,
    BLOCK_BYTES: tl.constexpr, HEAD_DIM: tl.constexpr, PAGE_BYTES: tl.constexpr, PAGE_TOKENS: tl.constexpr,
    BITS: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Packs codes into pages and sets their unused bytes to 0; see `encode_token`.

    Each program writes some bytes of a page: grid (blocks of bytes, pages, heads).
    """
    NUM_CODES: tl.constexpr = PAGE_TOKENS * HEAD_DIM
    CODE_BYTES: tl.constexpr = NUM_CODES * BITS // 8
    USED_BYTES: tl.constexpr = CODE_BYTES + 4 * NUM_CODES // GROUP
    number, head = tl.program_id(1), tl.program_id(2)
    page = tl.load(pages + head * pages_per_head + number).to(tl.int64)
    codes += (head * tl.num_programs(1) + number).to(tl.int64) * NUM_CODES
    byte = tl.program_id(0) * BLOCK_BYTES + tl.arange(0, BLOCK_BYTES)
    is_code = byte < CODE_BYTES
    packed = tl.zeros([BLOCK_BYTES], tl.int32)
    for field in tl.static_range(8 // BITS):
        code = tl.load(codes + field * CODE_BYTES + byte, mask=is_code, other=0).to(tl.int32)
        packed |= code << (BITS * field)
    is_unused = (byte >= USED_BYTES) & (byte < PAGE_BYTES)
    tl.store(records + page * PAGE_BYTES + byte, packed.to(tl.uint8), mask=is_code | is_unused)


def encode_token(x_nHD: Tensor, records: Tensor, layout: TokenLayout, pages_HP: Tensor) -> Tensor:
    """Writes tokens [n, H, D] (float32 or bfloat16, D contiguous) into the pages `pages_HP` int32 [H, P] of the pool.

    Keys are given after rotary embedding. Allocates a buffer of one byte per value. Returns flags uint8 [H, blocks];
    any nonzero flag means that the head's values cannot be stored.
    """
    num_tokens, num_heads, _ = x_nHD.shape
    num_pages = pages_HP.shape[1]
    padded_tokens = num_pages * layout.page_tokens
    blocks = triton.cdiv(padded_tokens, BLOCK_TOKENS)
    bad, codes = (
        torch.empty(num_heads, count, dtype=torch.uint8, device=records.device)
        for count in (blocks, padded_tokens * layout.head_dim)
    )
    quantize_token_kernel[(blocks, num_heads)](
        x_nHD, layout.view(records), pages_HP, codes, bad,
        num_tokens, padded_tokens, pages_HP.stride(0), *x_nHD.stride()[:2],
        **quantize_constants(layout), num_warps=NUM_WARPS,
    )  # fmt: skip
    pack_token_kernel[(triton.cdiv(layout.page_bytes, BLOCK_BYTES), num_pages, num_heads)](
        codes, records, pages_HP, pages_HP.stride(0), **pack_constants(layout), num_warps=NUM_WARPS
    )
    return bad


def quantize_constants(layout: TokenLayout) -> dict[str, Any]:
    """Compile-time arguments of the first kernel."""
    return {
        "BLOCK_TOKENS": BLOCK_TOKENS,
        **layout.constants(),
        "HADAMARD": layout.matrix is not None,
        "MATMUL": matmul_type(torch.bfloat16),
    }


def pack_constants(layout: TokenLayout) -> dict[str, Any]:
    """Compile-time arguments of the second kernel."""
    return {"BLOCK_BYTES": BLOCK_BYTES, **layout.constants()}

"""Attention of packed queries over the pages of their visible chunks, in one pass and without any scratch.

A program takes a block of query rows of one KV head (tokens x the query heads of its group, which are just more rows,
as there is no mask) and walks through the chunks that its range sees, page by page: decode keys in registers, rotate
them, scores, b(query, page), online softmax, decode values, accumulate. One launch reads the chunks of one (key codec,
value codec); the partial of another launch, or of the current chunk, is merged in the epilogue.

b is the same for all keys of a page, so it costs one subtraction per query and page: m = max(scores) - b, and
exp(scores - (m + b)). Reference: tests/attention/kernels/reference.py.

Decisions made without a device to measure on:
- Products are taken in the model's type (BF16), not in int8. Keys that are rotated after storage cannot be multiplied
  as codes: the rotation mixes two channels of unequal step size by an angle that differs from token to token, so
  neither step sizes nor angles can be folded into the query. That leaves keys stored after rotary embedding and values.
  For those, int8 also needs the query (or the probabilities) rounded to 8 bits, a page-wise rescaling of the
  accumulator, and codes repacked to bytes in the operand layout; the score product is half the work, so the gain is a
  quarter at most.
- Every block of queries decodes keys and values again: about 2 * 128 * D conversions per 4 * 128 * 128 * D
  multiplications and additions, which do not overlap with the tensor cores by themselves. The backend "scratch" decodes
  once and then runs the fastest dense kernel available; this one saves the memory of the scratch.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from pagedvid.attention.kernels.merge import load_rows, write_rows
from pagedvid.attention.kernels.work import BIAS_SOURCES, PageBias, PagedWork, Tiling
from pagedvid.codecs.channel.kernels.layout import PageLayout
from pagedvid.codecs.channel.kernels.tokens import load_rotated_tokens, load_step_sizes, load_tokens
from pagedvid.codecs.triton_common import matmul_type
from pagedvid.correction.kernels import SLOTS, bias_of_pages
from pagedvid.rotary.axis_tables import AngleTables
from pagedvid.rotary.kernels import angle_constants, angle_tensors

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)
NUM_SLOTS = tl.constexpr(SLOTS)
MAX_HEAD_DIM = 128
"""With 256, blocks take more shared memory than compute capability 8.0 has, and registers spill."""


@triton.jit
def page_group_bias(
    q_first, q_second, records, typed, keys, variance, first_page, num_pages, scale,
    MATMUL: tl.constexpr, HEAD_DIM: tl.constexpr, PAGE_BYTES: tl.constexpr, CODE_ROWS: tl.constexpr,
    PAIR_STEP_SIZES: tl.constexpr, SHORT_STEP_SIZES: tl.constexpr, ROTATES: tl.constexpr, BIAS: tl.constexpr,
):  # fmt: skip
    """b [M, 16] of 16 pages from `first_page` on, natural log. `variance`: the chunk's change of variance [D]."""
    HALF: tl.constexpr = HEAD_DIM // 2
    slot = tl.arange(0, NUM_SLOTS)
    channel = tl.arange(0, HALF)[None, :]
    if BIAS == 1:
        page = tl.load(keys + tl.minimum(first_page + slot, num_pages - 1)).to(tl.int64)[:, None]
        first = load_step_sizes(
            records, typed, page, channel, HEAD_DIM, PAGE_BYTES, CODE_ROWS, PAIR_STEP_SIZES, SHORT_STEP_SIZES
        )
        second = load_step_sizes(
            records, typed, page, HALF + channel, HEAD_DIM, PAGE_BYTES, CODE_ROWS, PAIR_STEP_SIZES, SHORT_STEP_SIZES
        )
        first *= first
        second *= second
    else:  # step_size^2 = 12 Var: a gain of variance counts as a uniform error of that variance
        all_slots = tl.zeros([NUM_SLOTS, 1], tl.float32)
        first = 12.0 * tl.load(variance + channel).to(tl.float32) + all_slots
        second = 12.0 * tl.load(variance + HALF + channel).to(tl.float32) + all_slots
    return bias_of_pages(q_first.to(tl.float32), q_second.to(tl.float32), first, second, scale, MATMUL, HALF, ROTATES)


@triton.jit(do_not_specialize=["lse_head_stride"], do_not_specialize_on_alignment=["pages", "segments", "alpha"])
def paged_attention_kernel(
    q, out, lse, records, key_typed, value_typed, pages, segments, ranges, blocks, cos, sin, axes,
    alpha, variance, scale, q_token_stride, q_head_stride, out_token_stride, out_head_stride, lse_token_stride,
    lse_head_stride,
    GROUP: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_TOKENS: tl.constexpr, HEAD_DIM: tl.constexpr,
    PAGE_BYTES: tl.constexpr, MATMUL: tl.constexpr, BIAS: tl.constexpr, ALPHA: tl.constexpr, ROTATES: tl.constexpr,
    ROTATE: tl.constexpr, FRAME_TOKENS: tl.constexpr, WIDTH: tl.constexpr, MERGE: tl.constexpr,
    KEY_BITS: tl.constexpr, KEY_PAGE_TOKENS: tl.constexpr, KEY_CODE_ROWS: tl.constexpr,
    KEY_PAIR_STEP_SIZES: tl.constexpr, KEY_SHORT_STEP_SIZES: tl.constexpr, KEY_GATHER: tl.constexpr,
    KEY_SPAN: tl.constexpr,
    VALUE_BITS: tl.constexpr, VALUE_PAGE_TOKENS: tl.constexpr, VALUE_CODE_ROWS: tl.constexpr,
    VALUE_PAIR_STEP_SIZES: tl.constexpr, VALUE_SHORT_STEP_SIZES: tl.constexpr, VALUE_GATHER: tl.constexpr,
):  # fmt: skip
    """Grid (KV heads, blocks of rows); see `paged_attention` for the arguments.

    BIAS: 0 none, 1 from step sizes, 2 from the change of variance. ROTATES: keys are rotated after storage.
    """
    HALF: tl.constexpr = HEAD_DIM // 2
    BLOCKS_PER_SPAN: tl.constexpr = (KEY_SPAN + BLOCK_TOKENS - 1) // BLOCK_TOKENS
    GROUP_SPANS: tl.constexpr = NUM_SLOTS if BIAS > 0 else 1 << 20
    head = tl.program_id(0)
    num_heads = tl.num_programs(0)
    range_number = tl.load(blocks + tl.program_id(1) * 2)
    first_row = tl.load(blocks + tl.program_id(1) * 2 + 1)
    start = tl.load(ranges + range_number * 4)
    num_queries = tl.load(ranges + range_number * 4 + 1)
    first_segment = tl.load(ranges + range_number * 4 + 2)
    end_segment = tl.load(ranges + range_number * 4 + 3)

    row = first_row + tl.arange(0, BLOCK_ROWS)
    is_query = row < num_queries * GROUP
    token = start.to(tl.int64) + row // GROUP
    query_head = head * GROUP + row % GROUP
    half = tl.arange(0, HALF)
    q_rows = q + token * q_token_stride + query_head * q_head_stride
    q_first = load_rows(q_rows, half, is_query).to(MATMUL)
    q_second = load_rows(q_rows, HALF + half, is_query).to(MATMUL)

    scale_log2 = scale * LOG2_E
    largest = tl.full([BLOCK_ROWS], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_ROWS], tl.float32)
    acc = tl.zeros([BLOCK_ROWS, HEAD_DIM], tl.float32)
    for number in range(first_segment, end_segment):
        segment = segments + number * 6
        keys = pages + tl.load(segment) + head * tl.load(segment + 1)
        values = pages + tl.load(segment + 2) + head * tl.load(segment + 3)
        num_keys = tl.load(segment + 4)
        frame_row = tl.load(segment + 5)
        num_spans = tl.cdiv(num_keys, KEY_SPAN)
        factor = LOG2_E
        if ALPHA:
            factor *= tl.load(alpha + number * num_heads + head)
        for first_span in range(0, num_spans, GROUP_SPANS):
            if BIAS > 0:
                group_bias = factor * page_group_bias(
                    q_first, q_second, records, key_typed, keys,
                    variance + (number * num_heads + head) * HEAD_DIM, first_span, num_spans, scale,
                    MATMUL, HEAD_DIM, PAGE_BYTES, KEY_CODE_ROWS, KEY_PAIR_STEP_SIZES, KEY_SHORT_STEP_SIZES, ROTATES,
                    BIAS,
                )  # fmt: skip
            end_of_group = num_keys
            if BIAS > 0:
                end_of_group = tl.minimum(num_keys, (first_span + GROUP_SPANS) * KEY_SPAN)
            keys_in_group = end_of_group - first_span * KEY_SPAN
            whole_spans = keys_in_group // KEY_SPAN
            num_blocks = whole_spans * BLOCKS_PER_SPAN + tl.cdiv(keys_in_group - whole_spans * KEY_SPAN, BLOCK_TOKENS)
            for block in range(0, num_blocks):
                slot = block // BLOCKS_PER_SPAN
                span_first = (first_span + slot) * KEY_SPAN
                first = span_first + block % BLOCKS_PER_SPAN * BLOCK_TOKENS
                end = tl.minimum(span_first + KEY_SPAN, num_keys)
                x, y = load_rotated_tokens(
                    records, key_typed, keys, cos, sin, axes, first, end, frame_row,
                    BLOCK_TOKENS, HEAD_DIM, PAGE_BYTES, KEY_BITS, KEY_PAGE_TOKENS, KEY_CODE_ROWS, KEY_PAIR_STEP_SIZES,
                    KEY_SHORT_STEP_SIZES, KEY_GATHER, ROTATE, FRAME_TOKENS, WIDTH,
                )  # fmt: skip
                is_key = first + tl.arange(0, BLOCK_TOKENS) < end
                stored = q.dtype.element_ty
                scores = tl.dot(q_first, tl.trans(x.to(stored).to(MATMUL)), input_precision="ieee")
                scores = tl.dot(q_second, tl.trans(y.to(stored).to(MATMUL)), scores, input_precision="ieee")
                scores = scores * scale_log2 + tl.where(is_key, 0.0, float("-inf"))[None, :]
                if BIAS > 0:
                    in_slot = (tl.arange(0, NUM_SLOTS) == slot)[None, :]
                    bias = tl.sum(tl.where(in_slot, group_bias, 0.0), axis=1)
                else:
                    bias = 0.0
                new_largest = tl.maximum(largest, tl.max(scores, axis=1) - bias)
                weight = tl.exp2(scores - (new_largest + bias)[:, None])
                decay = tl.exp2(largest - new_largest)
                total = total * decay + tl.sum(weight, axis=1)
                v = load_tokens(
                    records, value_typed, values, first, end, tl.arange(0, HEAD_DIM),
                    BLOCK_TOKENS, HEAD_DIM, PAGE_BYTES, VALUE_BITS, VALUE_PAGE_TOKENS, VALUE_CODE_ROWS,
                    VALUE_PAIR_STEP_SIZES, VALUE_SHORT_STEP_SIZES, VALUE_GATHER,
                )  # fmt: skip
                acc = tl.dot(
                    weight.to(stored).to(MATMUL), v.to(stored).to(MATMUL), acc * decay[:, None], input_precision="ieee"
                )
                largest = new_largest

    has_keys = total > 0.0
    divisor = tl.where(has_keys, total, 1.0)
    rows_lse = tl.where(has_keys, LN_2 * (largest + tl.log2(divisor)), float("-inf"))
    rows_out = acc / divisor[:, None]
    write_rows(
        out + token * out_token_stride + query_head * out_head_stride,
        lse + token * lse_token_stride + query_head * lse_head_stride,
        rows_out, rows_lse, is_query, HEAD_DIM, MERGE,
    )  # fmt: skip


def paged_attention(
    q_THD: Tensor,
    out_THD: Tensor,
    lse_TH: Tensor,
    records: Tensor,
    layouts: tuple[PageLayout, PageLayout],
    work: PagedWork,
    scale: float,
    *,
    angles: AngleTables | None = None,
    bias: PageBias | None = None,
    merge: bool = False,
) -> None:
    """Attention of rotated queries [T, Hq, D] over the pages of their segments, into `out_THD` and `lse_TH` float32.

    `layouts`: of keys and of values. `angles`: what keys rotate by; a segment names the row of its first frame.
    `merge`: `out` and `lse` hold another partial of the same queries, which is merged in; otherwise they are
    overwritten, with (0, -inf) where a range has no segment. D must be contiguous in q and out.
    """
    keys, values = layouts
    tiling, num_kv_heads = work.tiling, q_THD.shape[1] // work.group
    if len(work.blocks) == 0:
        return
    paged_attention_kernel[(num_kv_heads, len(work.blocks))](
        q_THD, out_THD, lse_TH, records, keys.view(records), values.view(records),
        work.pages, work.segments, work.ranges, work.blocks, *angle_tensors(angles, records),
        records if bias is None or bias.alpha is None else bias.alpha,
        records if bias is None or bias.variance is None else bias.variance,
        scale, *q_THD.stride()[:2], *out_THD.stride()[:2], *lse_TH.stride(),
        **attention_constants(layouts, q_THD.dtype, work.group, tiling, bias, angles, merge=merge),
        num_warps=tiling.num_warps,
        num_stages=tiling.num_stages,
    )  # fmt: skip


def attention_constants(
    layouts: tuple[PageLayout, PageLayout],
    dtype: torch.dtype,
    group: int,
    tiling: Tiling,
    bias: PageBias | None,
    angles: AngleTables | None,
    *,
    merge: bool,
) -> dict[str, Any]:
    """Compile-time arguments of the kernel."""
    keys, values = layouts
    if keys.is_raw:  # never corrected
        bias = None
    block_tokens = min(keys.block_tokens(), values.block_tokens(), tiling.max_block_tokens)
    span = block_tokens if keys.is_raw else keys.page_tokens
    value_blocks_fit = span % block_tokens == 0 and values.page_tokens % block_tokens == 0
    return {
        "GROUP": group,
        "BLOCK_ROWS": tiling.block_rows,
        "BLOCK_TOKENS": block_tokens,
        "HEAD_DIM": keys.head_dim,
        "PAGE_BYTES": keys.page_bytes,
        "MATMUL": matmul_type(dtype),
        "BIAS": BIAS_SOURCES[bias.source if bias is not None else "off"],
        "ALPHA": bias is not None and bias.alpha is not None,
        "ROTATES": bias is not None and bias.rotates,
        **angle_constants(angles),
        "MERGE": merge,
        **keys.constants("KEY_"),
        "KEY_GATHER": keys.is_raw,
        "KEY_SPAN": span,
        **values.constants("VALUE_"),
        "VALUE_GATHER": values.is_raw or not value_blocks_fit,
    }

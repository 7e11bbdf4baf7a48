"""All partials of a layer joined by one launch, lse - alpha * b inside. Reference: attention/merge.py.

Every partial is read once and the result is written once. What differs between sequences (the variant of the queries,
pairs, whether there is an alpha) is read while the kernel runs, so that one compiled kernel serves all codecs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from pagedvid.attention.merge import BiasTerms
from pagedvid.correction.kernels import bias_of_rows, squares_of_rows
from pagedvid.rotary.kernels import row_strides

BLOCK_ROWS = 16
NUM_WARPS = 4


@triton.jit(
    do_not_specialize=[
        "num_rows", "num_others", "has_alpha", "is_partial", "lse_range_stride", "lse_token_stride", "lse_head_stride",
        "others_lse_range_stride", "others_lse_number_stride", "others_lse_token_stride", "others_lse_head_stride",
        "out_lse_range_stride", "out_lse_token_stride", "out_lse_head_stride",
    ],
    do_not_specialize_on_alignment=["lse", "others_lse", "out_lse", "square", "alpha", "variants", "pairs"],
)  # fmt: skip
def merge_kernel(
    own, lse, others, others_lse, out, out_lse, q, square, alpha, variants, pairs, num_rows, num_others, has_alpha,
    is_partial, scale,
    own_range_stride, own_token_stride, own_head_stride, lse_range_stride, lse_token_stride, lse_head_stride,
    others_range_stride, others_number_stride, others_token_stride, others_head_stride,
    others_lse_range_stride, others_lse_number_stride, others_lse_token_stride, others_lse_head_stride,
    out_range_stride, out_token_stride, out_head_stride,
    out_lse_range_stride, out_lse_token_stride, out_lse_head_stride,
    q_range_stride, q_variant_stride, q_token_stride, q_head_stride,
    GROUP: tl.constexpr, BLOCK_ROWS: tl.constexpr, HEAD_DIM: tl.constexpr, BIAS: tl.constexpr,
):  # fmt: skip
    """Grid (KV heads, blocks of rows, ranges); a row is a query of one of the head's GROUP query heads.

    Weights are relative to the largest lse so far, as in a softmax that reads its input once. Rows are held in halves,
    like those of the queries, so that nothing changes its layout in the loop.
    """
    HALF: tl.constexpr = HEAD_DIM // 2
    half = tl.arange(0, HALF)[None, :]
    kv_head = tl.program_id(0)
    range_ = tl.program_id(2).to(tl.int64)
    row = tl.program_id(1) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    mask = row < num_rows
    is_row = mask[:, None]
    token = (row // GROUP).to(tl.int64)
    head = (kv_head * GROUP + row % GROUP).to(tl.int64)
    others_offset = token * others_token_stride + head * others_head_stride
    others_lse_offset = token * others_lse_token_stride + head * others_lse_head_stride
    q_offset = token * q_token_stride + head * q_head_stride
    others += range_ * others_range_stride
    others_lse += range_ * others_lse_range_stride
    q += range_ * q_range_stride

    places = (own + range_ * own_range_stride + token * own_token_stride + head * own_head_stride)[:, None] + half
    first = tl.load(places, mask=is_row, other=0.0).to(tl.float32)
    second = tl.load(places + HALF, mask=is_row, other=0.0).to(tl.float32)
    lse_places = lse + range_ * lse_range_stride + token * lse_token_stride + head * lse_head_stride
    largest = tl.load(lse_places, mask=mask, other=float("-inf"))
    mass = tl.where(largest == float("-inf"), 0.0, 1.0)
    first *= mass[:, None]
    second *= mass[:, None]
    if BIAS:
        known = tl.load(variants) * 2 + tl.load(pairs)
        q_rows = q + (known // 2).to(tl.int64) * q_variant_stride + q_offset
        q_first, q_second = squares_of_rows(q_rows, mask, known % 2, HALF)
    for number in range(num_others):
        places = (others + others_offset)[:, None] + half
        other_first = tl.load(places, mask=is_row, other=0.0).to(tl.float32)
        other_second = tl.load(places + HALF, mask=is_row, other=0.0).to(tl.float32)
        other_lse = tl.load(others_lse + others_lse_offset, mask=mask, other=float("-inf"))
        others += others_number_stride
        others_lse += others_lse_number_stride
        if BIAS:
            kind = tl.load(variants + number) * 2 + tl.load(pairs + number)
            if kind != known:
                q_rows = q + (kind // 2).to(tl.int64) * q_variant_stride + q_offset
                q_first, q_second = squares_of_rows(q_rows, mask, kind % 2, HALF)
            known = kind
            sequence = (range_ * num_others + number) * tl.num_programs(0) + kv_head
            b = bias_of_rows(q_first, q_second, square + sequence * HEAD_DIM, scale, HALF)
            other_lse -= b * tl.load(alpha + sequence, mask=has_alpha != 0, other=1.0)
        larger = tl.maximum(largest, other_lse)
        # While there are no keys at all, a finite anchor keeps -inf - (-inf) from giving NaN.
        anchor = tl.where(larger == float("-inf"), 0.0, larger)
        rescale = tl.exp(largest - anchor)
        weight = tl.exp(other_lse - anchor)
        first = first * rescale[:, None] + other_first * weight[:, None]
        second = second * rescale[:, None] + other_second * weight[:, None]
        mass = mass * rescale + weight
        largest = larger

    factor = 1.0 / tl.where(mass > 0.0, mass, 1.0)
    places = (out + range_ * out_range_stride + token * out_token_stride + head * out_head_stride)[:, None] + half
    tl.store(places, (first * factor[:, None]).to(out.dtype.element_ty), mask=is_row)
    tl.store(places + HALF, (second * factor[:, None]).to(out.dtype.element_ty), mask=is_row)
    lse_places = out_lse + range_ * out_lse_range_stride + token * out_lse_token_stride + head * out_lse_head_stride
    out_lse_rows = tl.where(mass > 0.0, largest - tl.log(factor), float("-inf"))
    tl.store(lse_places, out_lse_rows, mask=mask & (is_partial != 0))


def merge(
    own: tuple[Tensor, Tensor],
    others: Sequence[tuple[Tensor, Tensor]],
    out_ETHD: Tensor,
    *,
    bias: BiasTerms | None = None,
    q_EVTHD: Tensor | None = None,
    scale: float = 1.0,
    lse_ETH: Tensor | None = None,
) -> None:
    """As `pagedvid.attention.merge.merge`, by one launch that waits for nothing; T * G is at most a million.

    Partials in several tensors, which only chunks of different lengths give, are put into one first.
    """
    (own_out, own_lse), (other_outs, other_lse) = own, others[0]
    if len(others) > 1:
        other_outs, other_lse = (torch.cat(parts, dim=1) for parts in zip(*others, strict=True))
    num_ranges, num_queries, num_heads, head_dim = out_ETHD.shape
    group = 1 if bias is None else num_heads // bias.square_EJHD.shape[2]
    q, square, alpha, variants, pairs = own_out.unsqueeze(1), own_lse, None, own_lse, own_lse
    if bias is not None:
        assert q_EVTHD is not None, "the bias needs the queries"
        q, square, alpha, variants, pairs = q_EVTHD, bias.square_EJHD, bias.alpha_EJH, bias.variant_J, bias.pairs_J
    num_rows, out_lse = num_queries * group, own_lse if lse_ETH is None else lse_ETH
    merge_kernel[(num_heads // group, -(-num_rows // BLOCK_ROWS), num_ranges)](
        own_out, own_lse, other_outs, other_lse, out_ETHD, out_lse, q, square, square if alpha is None else alpha,
        variants, pairs, num_rows, other_outs.shape[1], int(alpha is not None), int(lse_ETH is not None), scale,
        *row_strides(own_out), *own_lse.stride(), *row_strides(other_outs), *other_lse.stride(),
        *row_strides(out_ETHD), *out_lse.stride(), *row_strides(q),
        **merge_constants(head_dim, group, bias=bias is not None), num_warps=NUM_WARPS,
    )  # fmt: skip


def merge_constants(head_dim: int, group: int, *, bias: bool) -> dict[str, Any]:
    """Compile-time arguments of the kernel."""
    return {"GROUP": group, "BLOCK_ROWS": BLOCK_ROWS, "HEAD_DIM": head_dim, "BIAS": bias}

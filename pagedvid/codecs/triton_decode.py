"""What the decode kernels of all codecs share: their arguments, the angles of tokens, and how tokens are written.

One launch decodes all chunks. A program takes some tokens of one chunk and some heads one after the other, so that the
angles of these tokens are loaded once. Grid: (blocks of tokens, chunks, groups of HEADS heads).

Axes: S = E * J chunks, J for each of E ranges; n tokens of a chunk; H KV heads; P pages of a head; D head_dim.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from pagedvid.codecs.packing import FLOAT8_MAX, FP16_MAX
from pagedvid.codecs.triton_common import ROUND
from pagedvid.rotary.angles import Angles

HEADS = 4
"""Heads that a program decodes. With more, a short history would not fill a GPU."""
COUNTS = ("num_tokens", "num_heads", "pages_per_head", "chunks_per_range")
"""Arguments of every decode kernel that differ from launch to launch; kernels are not specialized on their values."""
UNALIGNED = ("pages", "tables", "inverse_scales", "out_heads")
"""Pointers, often to slices; kernels are not specialized on their alignment."""
LIMIT_OF_16, LIMIT_OF_8 = tl.constexpr(FP16_MAX), tl.constexpr(FLOAT8_MAX)
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
"""Triton's interpreter loses a carry where it rounds to float8, and wraps around beyond the largest number."""


def decode_arguments(
    pages_SHP: Tensor,
    num_tokens: int,
    out_EJnHD: Tensor,
    angles: Angles | None,
    inverse_scales_SH: Tensor | None,
    out_heads_H: Tensor | None,
) -> tuple[Any, ...]:
    """The arguments from `pages` to `out_head_stride`; pages stand for tensors that are not read."""
    unused = pages_SHP
    cos, sin, tables = (unused, unused, unused) if angles is None else (angles.cos_UnP, angles.sin_UnP, angles.table_S)
    return (
        pages_SHP,
        cos,
        sin,
        tables,
        unused if inverse_scales_SH is None else inverse_scales_SH,
        unused if out_heads_H is None else out_heads_H,
        out_EJnHD,
        num_tokens,
        *pages_SHP.shape[1:],
        out_EJnHD.shape[1],
        *out_EJnHD.stride()[:4],
    )


def decode_options(
    angles: Angles | None, inverse_scales_SH: Tensor | None, out_heads_H: Tensor | None
) -> dict[str, Any]:
    """The compile-time arguments that all decode kernels have."""
    return {
        "HEADS": HEADS,
        "ROTATE": angles is not None,
        "SCALED": inverse_scales_SH is not None,
        "PLACED": out_heads_H is not None,
    }


def decode_grid(blocks: int, pages_SHP: Tensor) -> tuple[int, int, int]:
    """The grid of a launch, in programs."""
    num_chunks, num_heads, _ = pages_SHP.shape
    return blocks, num_chunks, triton.cdiv(num_heads, HEADS)


@triton.jit
def out_of_chunk(out, chunk, chunks_per_range, range_stride, chunk_stride):
    """Where the first token of the first head of a chunk is written."""
    range_number = (chunk // chunks_per_range).to(tl.int64)
    return out + range_number * range_stride + (chunk % chunks_per_range).to(tl.int64) * chunk_stride


@triton.jit
def out_of_head(out, out_heads, head, head_stride, PLACED: tl.constexpr):
    """The pointers `out`, moved from the first head to where a head is written."""
    if PLACED:
        head = tl.load(out_heads + head)
    return out + tl.to_tensor(head).to(tl.int64) * head_stride


@triton.jit
def load_angles(cos, sin, tables, chunk, token, num_tokens, HALF: tl.constexpr):
    """(cos, sin), each float32 [N, HALF], of the tokens `token` [N] of a chunk; beyond it, of its last token."""
    row = tl.load(tables + chunk).to(tl.int64) * num_tokens + tl.minimum(token, num_tokens - 1)
    places = row[:, None] * HALF + tl.arange(0, HALF)[None, :]
    return tl.load(cos + places).to(tl.float32), tl.load(sin + places).to(tl.float32)


@triton.jit
def rotate(first, second, cos, sin):
    """Both halves of the channels, rotated."""
    return first * cos - second * sin, second * cos + first * sin


@triton.jit
def store_halves(rows, first, second, mask, inverse_scale, SCALED: tl.constexpr):
    """Writes tokens, given as halves [N, D/2], to the row pointers `rows` [N] where `mask` [N] is set.

    With SCALED they are multiplied by the number at the pointer `inverse_scale`.
    """
    HALF: tl.constexpr = first.shape[1]
    TYPE: tl.constexpr = rows.dtype.element_ty
    if SCALED:
        factor = tl.load(inverse_scale)
        first, second = first * factor, second * factor
    places = rows[:, None] + tl.arange(0, HALF)[None, :]
    tl.store(places, stored(first, TYPE), mask=mask[:, None])
    tl.store(places + HALF, stored(second, TYPE), mask=mask[:, None])


@triton.jit
def stored(x, TYPE: tl.constexpr):
    """Values in the dtype of decoded tokens; too large ones become the largest finite ones."""
    if TYPE.is_fp16():
        x = tl.clamp(x.to(tl.float32), -LIMIT_OF_16, LIMIT_OF_16)
    if TYPE.is_fp8e4nv() and INTERPRETED:  # the instruction of the device saturates and rounds
        x = _on_grid_of_8(tl.clamp(x.to(tl.float32), -LIMIT_OF_8, LIMIT_OF_8))
    return x.to(TYPE)


@triton.jit
def _on_grid_of_8(x):
    """float32 values rounded to the nearest float8_e4m3fn numbers, half to even; |x| is at most the largest."""
    exponent = x.to(tl.int32, bitcast=True) & 0x7F800000
    distance = (tl.maximum(exponent, 121 << 23) - (3 << 23)).to(tl.float32, bitcast=True)  # 2^-6 is the least normal
    return ((x / distance + ROUND) - ROUND) * distance

"""Rotary embedding on a GPU: rotates the queries and keys of a step, and looks up the angles of stored keys.

`rotated` puts a step's queries and keys into half layout and rotates them in one pass. Device functions look up the
angles of stored keys in small tables, with one row per position on an axis instead of one per token
(rotary/axis_tables.py). For frames of 30 x 52 tokens, as in Wan, these have 82 rows and one more for each frame of
history: 42 KiB, which stay in the first-level cache. One row per token would take 7 MiB for six chunks.

References: `rotary.tables.rotate` and `AngleTables.of_chunk`.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from pagedvid.rotary.axis_tables import AngleTables

BLOCK_TOKENS = 32
NUM_WARPS = 4


def angle_tensors(angles: AngleTables | None, unused: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(cos, sin, axes) for a launch; without angles, the tensor `unused` in their place, which is not read."""
    return (unused, unused, unused) if angles is None else (angles.cos, angles.sin, angles.axes)


def angle_constants(angles: AngleTables | None) -> dict[str, Any]:
    """The compile-time arguments ROTATE, FRAME_TOKENS and WIDTH for a launch."""
    if angles is None:
        return {"ROTATE": False, "FRAME_TOKENS": 1, "WIDTH": 1}
    return {"ROTATE": True, "FRAME_TOKENS": angles.frame_tokens, "WIDTH": angles.width}


@triton.jit
def load_angles(
    cos, sin, axes, token, frame_row, mask, HALF: tl.constexpr, FRAME_TOKENS: tl.constexpr, WIDTH: tl.constexpr
):
    """(cos, sin), each float32 [N, HALF], of the tokens [N] of a chunk whose first frame has the row `frame_row`.

    Where `mask` [N] is not set, nothing is read, and they are 1 and 0.
    """
    pair = tl.arange(0, HALF)[None, :]
    if FRAME_TOKENS == 1:
        row = (frame_row + token)[:, None].to(tl.int64)
    else:
        HEIGHT: tl.constexpr = FRAME_TOKENS // WIDTH
        axis = tl.load(axes + pair)
        place = token % FRAME_TOKENS
        in_frame = tl.where(axis == 1, (place // WIDTH)[:, None], (HEIGHT + place % WIDTH)[:, None])
        row = tl.where(axis == 0, (frame_row + token // FRAME_TOKENS)[:, None], in_frame)
    places = row * HALF + pair
    is_token = mask[:, None]
    cos_tile = tl.load(cos + places, mask=is_token, other=1.0).to(tl.float32)
    return cos_tile, tl.load(sin + places, mask=is_token, other=0.0).to(tl.float32)


@triton.jit
def rotate(first, second, cos_tile, sin_tile):
    """Both halves of the channels, rotated."""
    return first * cos_tile - second * sin_tile, second * cos_tile + first * sin_tile


@triton.jit(do_not_specialize=["num_tokens"])
def rotate_kernel(
    x, cos, sin, out, num_tokens, x_token_stride, x_head_stride, out_token_stride, out_head_stride,
    BLOCK_TOKENS: tl.constexpr, HEAD_DIM: tl.constexpr, INTERLEAVED: tl.constexpr, ROTATE: tl.constexpr,
):  # fmt: skip
    """Each program rotates one block of tokens of one head: grid (blocks of tokens, heads). See `rotated`."""
    HALF: tl.constexpr = HEAD_DIM // 2
    token = (tl.program_id(0) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)).to(tl.int64)
    mask = (token < num_tokens)[:, None]
    half = tl.arange(0, HALF)[None, :]
    places = x + token[:, None] * x_token_stride + tl.program_id(1).to(tl.int64) * x_head_stride
    if INTERLEAVED:
        first = tl.load(places + 2 * half, mask=mask, other=0.0)
        second = tl.load(places + 2 * half + 1, mask=mask, other=0.0)
    else:
        first = tl.load(places + half, mask=mask, other=0.0)
        second = tl.load(places + HALF + half, mask=mask, other=0.0)
    if ROTATE:
        cos_tile = tl.load(cos + token[:, None] * HALF + half, mask=mask, other=1.0).to(tl.float32)
        sin_tile = tl.load(sin + token[:, None] * HALF + half, mask=mask, other=0.0).to(tl.float32)
        first, second = first.to(tl.float32), second.to(tl.float32)
        first, second = first * cos_tile - second * sin_tile, second * cos_tile + first * sin_tile
    places = out + token[:, None] * out_token_stride + tl.program_id(1).to(tl.int64) * out_head_stride + half
    tl.store(places, first.to(out.dtype.element_ty), mask=mask)
    tl.store(places + HALF, second.to(out.dtype.element_ty), mask=mask)


def rotated(x_THD: Tensor, layout: str, angles: tuple[Tensor, Tensor] | None, out: Tensor | None = None) -> Tensor:
    """x [T, H, D], D contiguous, in half layout and rotated by `angles`, (cos, sin) [T, D/2], contiguous, if given.

    `layout`: which channels of x form a pair; see rotary/tables.py. Written to `out` [T, H, D] if given.
    """
    out = torch.empty(x_THD.shape, dtype=x_THD.dtype, device=x_THD.device) if out is None else out
    num_tokens, num_heads, head_dim = x_THD.shape
    cos, sin = angles if angles is not None else (x_THD, x_THD)
    rotate_kernel[(triton.cdiv(num_tokens, BLOCK_TOKENS), num_heads)](
        x_THD, cos, sin, out, num_tokens, *x_THD.stride()[:2], *out.stride()[:2],
        **rotate_constants(head_dim, layout, rotate=angles is not None), num_warps=NUM_WARPS,
    )  # fmt: skip
    return out


def rows_contiguous(x: Tensor) -> Tensor:
    """x with its last axis contiguous, as all kernels need it; the other axes may have any strides."""
    return x if x.stride(-1) == 1 else x.contiguous()


def rotate_constants(head_dim: int, layout: str, *, rotate: bool) -> dict[str, Any]:
    """Compile-time arguments of the kernel."""
    return {
        "BLOCK_TOKENS": BLOCK_TOKENS,
        "HEAD_DIM": head_dim,
        "INTERLEAVED": layout == "interleaved",
        "ROTATE": rotate,
    }

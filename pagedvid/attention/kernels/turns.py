"""Rotary angles of stored keys from small tables, one row per position on an axis instead of one per token.

Every pair of channels turns with the time, the row or the column of its token; quant/rope_axes.py has the tables. For
frames of 30 x 52 tokens, as Wan's, they have 82 rows and one for each frame of history: 42 KiB, which stay in the
processor's first cache. One row per token would be 7 MiB for six chunks.

Reference: `Turns.of_chunk`.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from pagedvid.quant.rope_axes import Turns


def turn_tensors(turns: Turns | None, unused: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(cos, sin, axes) of a launch; `unused` stands for what is not read."""
    return (unused, unused, unused) if turns is None else (turns.cos, turns.sin, turns.axes)


def turn_constants(turns: Turns | None) -> dict[str, Any]:
    """Compile-time arguments TURN, FRAME_TOKENS and WIDTH of a launch."""
    if turns is None:
        return {"TURN": False, "FRAME_TOKENS": 1, "WIDTH": 1}
    return {"TURN": True, "FRAME_TOKENS": turns.frame_tokens, "WIDTH": turns.width}


@triton.jit
def load_turns(
    cos, sin, axes, token, frame_row, mask, HALF: tl.constexpr, FRAME_TOKENS: tl.constexpr, WIDTH: tl.constexpr
):
    """(cos, sin) float32 [N, HALF] of the tokens [N] of a chunk whose first frame has the row `frame_row`.

    Where `mask` [N] is not set, nothing is read and nothing turns.
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
def turn(first, second, cos_tile, sin_tile):
    """Both halves of channels, turned."""
    return first * cos_tile - second * sin_tile, second * cos_tile + first * sin_tile

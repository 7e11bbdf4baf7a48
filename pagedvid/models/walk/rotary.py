"""World coordinates as rotary positions: a token's angles depend on its place on the map, and not on time.

A map does not change, so what was seen at a place is still there on return. With angles of row and column alone, the
queries of a place that is seen again match the keys that were stored there, however long ago.

The cache knows a position as one whole number. Here it numbers a *track*: a first cell in view, and the move to the
next frame,

    number of a frame = track * TRACK_FRAMES + frames since the track's beginning,   track = (row, column, move)

so that a number says by itself where its tokens are, in any stream. A chunk has a track of its own.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pagedvid.errors import ConfigError, ShapeError
from pagedvid.handles import Compilable
from pagedvid.models.walk.spec import FRAMES_PER_CHUNK, TOKENS_PER_FRAME, VIEW_CELLS

TRACK_FRAMES = 2 * FRAMES_PER_CHUNK
"""Of a chunk, and of the next one if the walk goes on as before: its readers, for a correction that is measured."""
MAX_COORDINATE = 2**23
"""Rows and columns of the world are at least minus this and below it."""
FASTEST, SLOWEST = 0.8 * math.pi, 2 * math.pi / 512
"""Radians per cell of the first and the last pair of an axis: cells next to each other differ much, and no two cells
within 512 of each other are alike."""


def position_of(row: int, column: int, move: tuple[int, int]) -> int:
    """Number of a frame whose first cell is (row, column), on a track that goes on by `move`. Raises ConfigError."""
    if not all(-MAX_COORDINATE <= coordinate < MAX_COORDINATE for coordinate in (row, column)):
        raise ConfigError(f"the walk leads to ({row}, {column}); rows and columns end at {MAX_COORDINATE}: turn back")
    track = (row + MAX_COORDINATE) * 2 * MAX_COORDINATE + column + MAX_COORDINATE
    return ((track * 3 + move[0] + 1) * 3 + move[1] + 1) * TRACK_FRAMES


def place_of(position: int) -> tuple[int, int]:
    """World (row, column) of the first cell of a frame; the inverse of `position_of`, and along the track."""
    track, frame = divmod(position, TRACK_FRAMES)
    track, right = divmod(track, 3)
    track, down = divmod(track, 3)
    row, column = divmod(track, 2 * MAX_COORDINATE)
    return row - MAX_COORDINATE + frame * (down - 1), column - MAX_COORDINATE + frame * (right - 1)


def cells_in_view(row: int, column: int) -> Tensor:
    """World (row, column) of every token of a frame, int64 [64, 2]."""
    view = torch.arange(VIEW_CELLS, dtype=torch.int64)
    return torch.cartesian_prod(row + view, column + view)


def world_angles(cells_T2: Tensor, head_dim: int) -> Tensor:
    """Angles of cells, float64 [T, D/2]: half of the pairs rotate with the row, half with the column."""
    steps = torch.linspace(0, 1, head_dim // 4, dtype=torch.float64)
    frequencies = FASTEST * (SLOWEST / FASTEST) ** steps
    return (cells_T2.double().unsqueeze(2) * frequencies).flatten(1)


class WorldRotary(Compilable):
    """`RopeTables` of positions that are numbered by `position_of`."""

    layout = "half"

    def __init__(self, head_dim: int) -> None:
        """Raises ConfigError for a `head_dim` whose pairs cannot be shared by two axes."""
        if head_dim % 4:
            raise ConfigError(f"head_dim is {head_dim}; it must be a multiple of 4: two axes of pairs")
        self._head_dim = head_dim

    def tables(self, first_token: int, num_tokens: int) -> tuple[Tensor, Tensor]:
        """(cos, sin), float32 [num_tokens, D/2]. Raises ShapeError for a part of a frame."""
        first, cut = divmod(first_token, TOKENS_PER_FRAME)
        if cut or num_tokens % TOKENS_PER_FRAME:
            raise ShapeError(
                f"tokens {first_token} to {first_token + num_tokens} cut a frame of {TOKENS_PER_FRAME} tokens; "
                "give whole frames"
            )
        frames = range(first, first + num_tokens // TOKENS_PER_FRAME)
        angles = world_angles(torch.cat([cells_in_view(*place_of(frame)) for frame in frames]), self._head_dim)
        return angles.cos().float(), angles.sin().float()

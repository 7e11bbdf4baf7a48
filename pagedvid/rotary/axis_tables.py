"""Rotary angles of a step's chunks as small tables, with one row per position on an axis instead of one per token.

The rows are taken from `RopeTables.tables` of whole chunks, which stays the only source of angles. Their order:

    row of the tables    0 ..               the rows of a frame      read for pairs that rotate with rows
                         height ..          the columns of a frame   read for pairs that rotate with columns
                         height + width ..  the frames, chunk by chunk

If any chunk does not start with the first token of a frame, all chunks of the step fall back to frames of one token, as
with a rope that has no grid: the tables then have a row for every token.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn.functional import pad

from pagedvid.rotary.grid import RopeGrid
from pagedvid.rotary.tables import RopeTables, angle_between, grid_of

Place = tuple[int, int]
"""First token and number of tokens of a chunk."""
Angles = tuple[Tensor, Tensor]
"""(cos, sin)."""


@dataclass(frozen=True)
class AngleTables:
    """The tables that kernels read. D head_dim."""

    cos: Tensor
    """[height + width + frames of all chunks, D/2], contiguous."""
    sin: Tensor
    axes: Tensor
    """int32 [D/2]: what each pair rotates with: 0 time, 1 row, 2 column."""
    frame_tokens: int
    width: int

    @staticmethod
    def by_token(cos: Tensor, sin: Tensor) -> AngleTables:
        """From tables [tokens, D/2] without a grid: frames of one token."""
        still = cos.new_zeros(2, cos.shape[1])
        axes = torch.zeros(cos.shape[1], dtype=torch.int32, device=cos.device)
        return AngleTables(torch.cat([still + 1, cos]), torch.cat([still, sin]), axes, 1, 1)

    @property
    def first_frame_row(self) -> int:
        """Row of the first frame of the first chunk."""
        return self.frame_tokens // self.width + self.width

    def of_chunk(self, frame_row: int, num_tokens: int) -> Angles:
        """(cos, sin), each [num_tokens, D/2], of the first tokens of a chunk, looked up as kernels do.

        `frame_row`: the row of the chunk's first frame.
        """
        token = torch.arange(num_tokens, device=self.cos.device)
        place = token % self.frame_tokens
        column_row = self.frame_tokens // self.width + place % self.width
        rows_n3 = torch.stack([frame_row + token // self.frame_tokens, place // self.width, column_row], dim=1)
        rows = rows_n3[:, self.axes.long()]
        return self.cos.gather(0, rows), self.sin.gather(0, rows)


@dataclass(frozen=True)
class AxisTables(AngleTables):
    """The tables of the chunks of a step, float32."""

    frame_rows: tuple[int, ...]
    """The row of the first frame of each chunk."""

    @staticmethod
    def of(rope: RopeTables, places: Sequence[Place]) -> AxisTables:
        """The angles of the chunks at `places`, at least one. Raises ConfigError if the rope's grid does not fit it."""
        cos, sin = _by_chunk(rope, places)
        grid = _common_grid(rope, cos, [first_token for first_token, _ in places])
        return _made(
            grid,
            torch.cat([_in_frame(grid, cos, still=1.0), _frames(grid, cos)]),
            torch.cat([_in_frame(grid, sin, still=0.0), _frames(grid, sin)]),
            places,
        )

    @staticmethod
    def shifted(rope: RopeTables, read_places: Sequence[Place], stored_positions: Sequence[int]) -> AxisTables:
        """The angles that rotate keys on from `stored_positions` to the positions where they are read.

        Between the first tokens of two frames only time changes, so that pairs of rows and columns are not rotated.
        """
        stored_places = [
            (first, num_tokens) for first, (_, num_tokens) in zip(stored_positions, read_places, strict=True)
        ]
        read, stored = _by_chunk(rope, read_places), _by_chunk(rope, stored_places)
        grid = _common_grid(rope, read[0], [first_token for first_token, _ in (*read_places, *stored_places)])
        end_cos, end_sin, stored_cos, stored_sin = (_frames(grid, tables) for tables in (*read, *stored))
        cos, sin = angle_between((stored_cos, stored_sin), (end_cos, end_sin))
        still = cos.new_zeros(grid.height + grid.width, cos.shape[1])
        return _made(
            grid,
            torch.cat([still + 1, cos]),
            torch.cat([still, sin]),
            read_places,
        )

    def at(self, number: int, num_tokens: int) -> Angles:
        """(cos, sin), each [num_tokens, D/2], of the first tokens of chunk `number`."""
        return self.of_chunk(self.frame_rows[number], num_tokens)

    def to(self, device: torch.device) -> AxisTables:
        """The same on another device."""
        cos, sin, axes = (table.to(device) for table in (self.cos, self.sin, self.axes))
        return replace(self, cos=cos, sin=sin, axes=axes)


def follows_grid(rope: RopeTables, places: Sequence[Place]) -> bool:
    """Whether lookups by the rope's grid give its tables at `places` bit for bit. Waits for the device."""
    looked_up = AxisTables.of(rope, places)
    return all(
        torch.equal(ours, theirs)
        for number, place in enumerate(places)
        for ours, theirs in zip(looked_up.at(number, place[1]), rope.tables(*place), strict=True)
    )


def _by_chunk(rope: RopeTables, places: Sequence[Place]) -> tuple[list[Tensor], list[Tensor]]:
    """The cosines and the sines of each chunk, [tokens, D/2] each."""
    tables = [rope.tables(*place) for place in places]
    return [cos for cos, _ in tables], [sin for _, sin in tables]


def _common_grid(rope: RopeTables, tables: Sequence[Tensor], starts: Iterable[int]) -> RopeGrid:
    """The rope's grid if every one of `starts` is the first token of a frame; otherwise frames of one token."""
    num_pairs = tables[0].shape[1]
    grid = grid_of(rope, num_pairs)
    has_frames = grid.frame_tokens > 1 and all(start % grid.frame_tokens == 0 for start in starts)
    return grid if has_frames else RopeGrid.by_token(num_pairs)


def _in_frame(grid: RopeGrid, tables: Sequence[Tensor], still: float) -> Tensor:
    """Rows and columns of a frame, [height + width, D/2], from the first frame of the longest chunk.

    If even that is shorter than a frame, the rows and columns that no chunk has are `still`.
    """
    frame = max(tables, key=len)[: grid.frame_tokens]
    rows, columns = frame[:: grid.width], frame[: grid.width]
    missing = (grid.height - len(rows), grid.width - len(columns))
    return torch.cat([pad(part, (0, 0, 0, n), value=still) for part, n in zip((rows, columns), missing, strict=True)])


def _frames(grid: RopeGrid, tables: Sequence[Tensor]) -> Tensor:
    """The first token of every frame, [frames of all chunks, D/2]."""
    return torch.cat([table[:: grid.frame_tokens] for table in tables])


def _made(grid: RopeGrid, cos: Tensor, sin: Tensor, places: Sequence[Place]) -> AxisTables:
    num_frames = [-(-num_tokens // grid.frame_tokens) for _, num_tokens in places[:-1]]
    frame_rows = tuple(accumulate(num_frames, initial=grid.height + grid.width))
    axes = torch.tensor(grid.axes, dtype=torch.int32, device=cos.device)
    return AxisTables(cos, sin, axes, grid.frame_tokens, grid.width, frame_rows)

"""The rotary angles of chunks that are decoded together: a row of cosines and sines for every token.

Axes: S chunks, U different tables, n tokens of a chunk, P = D/2 pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from pagedvid.errors import ShapeError
from pagedvid.rotary.tables import RopeTables, angle_between

Place = tuple[int, int]
"""First token and number of tokens of a chunk."""


@dataclass(frozen=True)
class Angles:
    """Tables in which kernels and their reference look up the angles of each token."""

    cos_UnP: Tensor
    """Contiguous, in the dtype of the model, on the device of the pages."""
    sin_UnP: Tensor
    table_S: Tensor
    """int32: the table of each chunk. Tables are numbered by their first chunk, so that U = S says that each chunk has
    its own."""

    @staticmethod
    def of(rope: RopeTables, places: Sequence[Place], dtype: torch.dtype, device: torch.device) -> Angles:
        """The angles at `places`, at least one, which have equally many tokens; equal places share a table.

        Raises ShapeError for chunks of different lengths.
        """
        different = list(dict.fromkeys(places))
        return _made(*_stacked(rope, different), [different.index(place) for place in places], dtype, device)

    @staticmethod
    def shifted(
        rope: RopeTables,
        read_places: Sequence[Place],
        stored_positions: Sequence[int],
        dtype: torch.dtype,
        device: torch.device,
    ) -> Angles:
        """The angles that re-rotate keys from `stored_positions`, at which they were rotated before storage, to
        `read_places`. Chunks with equal positions share a table.

        Raises ShapeError for chunks of different lengths.
        """
        moves = list(zip(read_places, stored_positions, strict=True))
        different = list(dict.fromkeys(moves))
        read = _stacked(rope, [place for place, _ in different])
        stored = _stacked(rope, [(position, num_tokens) for (_, num_tokens), position in different])
        return _made(*angle_between(stored, read), [different.index(move) for move in moves], dtype, device)

    @property
    def num_chunks(self) -> int:
        """S."""
        return len(self.table_S)

    def at(self, chunk: int) -> tuple[Tensor, Tensor]:
        """(cos, sin) [n, P] of one chunk."""
        cos_SnP, sin_SnP = self.by_chunk(slice(chunk, chunk + 1))
        return cos_SnP[0], sin_SnP[0]

    @cached_property
    def of_all(self) -> tuple[Tensor, Tensor]:
        """(cos, sin) [S, n, P] of all chunks."""
        return self.by_chunk()

    def by_chunk(self, chunks: slice = slice(None)) -> tuple[Tensor, Tensor]:
        """(cos, sin) [S, n, P] of some chunks; copied only where some of all chunks share a table and some do not."""
        table_S = self.table_S[chunks]
        if len(self.cos_UnP) == self.num_chunks:
            return self.cos_UnP[chunks], self.sin_UnP[chunks]
        if len(self.cos_UnP) == 1:
            shape = (len(table_S), -1, -1)
            return self.cos_UnP.expand(shape), self.sin_UnP.expand(shape)
        return self.cos_UnP.index_select(0, table_S), self.sin_UnP.index_select(0, table_S)


def _stacked(rope: RopeTables, places: Sequence[Place]) -> tuple[Tensor, Tensor]:
    """(cos, sin), float32 [U, n, P]. Raises ShapeError for places of different lengths."""
    lengths = {num_tokens for _, num_tokens in places}
    if len(lengths) > 1:
        raise ShapeError(f"chunks of {sorted(lengths)} tokens; give only chunks of one length, and others separately")
    tables = [rope.tables(*place) for place in places]
    return torch.stack([cos for cos, _ in tables]), torch.stack([sin for _, sin in tables])


def _made(cos_UnP: Tensor, sin_UnP: Tensor, table_S: Sequence[int], dtype: torch.dtype, device: torch.device) -> Angles:
    numbers = torch.tensor(table_S, dtype=torch.int32)
    return Angles(cos_UnP.to(device, dtype), sin_UnP.to(device, dtype), numbers.to(device))

"""What one layer of a batch reads: the data that layer_reads.py makes and history.py goes through.

Of the keys that a range sees, those that need no correction form one sequence for the dense library, its `own`:
context, current chunk, and history that is not corrected. Every corrected chunk is a sequence of its own, because its
partial is corrected before it is merged.

    tile (heads)   own     | context | current | piece: columns 0 1 | piece: column 2 |      one dense call
                   groups  | piece: columns 3 4 | piece: column 5 |                          one dense call, a partial
                                                                                             for each column
A piece takes one decoding call for each codec of its keys and one for each of its values, all into one buffer.

Axes: E ranges, J columns, S = E * J chunks, h heads of one codec, H heads of a tile, P pages of a head, D head_dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from torch import Tensor

from pagedvid.attention.batches import Column
from pagedvid.attention.merge import BiasTerms
from pagedvid.cache.plan import Read
from pagedvid.codecs.base import PageKernels
from pagedvid.codecs.heads import HeadIndex
from pagedvid.correction.formula import BiasSource
from pagedvid.rotary.angles import Angles


@dataclass(frozen=True, eq=False)
class Decoding:
    """The keys, or the values, of a piece that share a codec: one call."""

    heads: HeadIndex
    """Which heads of the tile."""
    kernels: PageKernels
    pages_ShP: Tensor
    """int32."""
    angles: Angles | None
    """By which keys are rotated."""


@dataclass(frozen=True)
class Piece:
    """Neighbouring columns of equal length, whose heads of a tile are stored in the same codecs."""

    columns: tuple[Column, ...]
    first_token: int
    """History tokens before it in the tile's own sequence, or in the sequences of a group."""
    keys: tuple[Decoding, ...]
    values: tuple[Decoding, ...]
    source: BiasSource | None
    """Where b comes from; None: its keys are not corrected."""
    padded_tokens: int
    """Tokens that the pages of a chunk have room for."""

    @cached_property
    def num_tokens(self) -> int:
        """Tokens of each chunk."""
        return self.columns[0].num_tokens

    @cached_property
    def num_heads(self) -> int:
        """Heads of the tile."""
        return sum(decoding.pages_ShP.shape[1] for decoding in self.keys)


@dataclass(frozen=True, eq=False)
class Group:
    """Columns that one dense call reads, a sequence each (or several calls, if chunks are corrected in parts)."""

    pieces: tuple[Piece, ...]
    part_tokens: tuple[int, ...]
    is_fp8: bool
    """Whether it is decoded to 8-bit floats, not to the model's dtype."""
    room_tokens: int
    """Tokens of each chunk in the buffer: PyTorch operations decode whole pages into it, if they have the room."""

    @cached_property
    def parts(self) -> list[slice]:
        """The tokens of each part."""
        ends = list(accumulate(self.part_tokens))
        return [slice(first, end) for first, end in zip([0, *ends], ends, strict=False)]

    @cached_property
    def num_columns(self) -> int:
        """Chunks of each range."""
        return sum(len(piece.columns) for piece in self.pieces)

    @cached_property
    def num_tokens(self) -> int:
        """Tokens of each chunk."""
        return self.pieces[0].num_tokens


@dataclass(frozen=True)
class Variant:
    """One form of the queries that b takes."""

    axes: Tensor | None
    """Their components along the rows of [D, D]; None: the channels."""
    column: Column
    """The first whose keys meet them."""
    part: int


@dataclass(frozen=True)
class Round:
    """Groups whose partials are merged together."""

    groups: tuple[Group, ...]
    bias: BiasTerms | None
    """Of the partials of all groups, part by part, column by column; None: none is corrected."""
    variants: tuple[Variant, ...]
    """Of the queries, in `bias`."""


@dataclass(frozen=True)
class Tile:
    """Some heads of a layer and everything that they read."""

    index: HeadIndex
    """The heads."""
    queries: HeadIndex
    """Their query heads."""
    own: tuple[Piece, ...]
    rounds: tuple[Round, ...]
    """More than one only if the scratch cannot hold all partials."""

    @cached_property
    def own_history_tokens(self) -> int:
        """History tokens of each range's own sequence."""
        return 0 if not self.own else self.own[-1].first_token + len(self.own[-1].columns) * self.own[-1].num_tokens


def by_range(columns: Sequence[Column]) -> list[Read]:
    """The reads of all columns, range by range."""
    return [read for reads in zip(*(column.reads for column in columns), strict=True) for read in reads]

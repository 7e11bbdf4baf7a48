"""Plans what one layer of a batch reads, once for all denoise steps of the same chunks.

If the scratch cannot hold what a range sees, the heads are cut into tiles, and for a single head also the chunks into
groups, and the groups into rounds.

Axes: E ranges, J columns, S = E * J chunks, h heads that share a codec, P pages of a head, D head_dim.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Protocol

import torch

from pagedvid.attention.batches import Batch, Column
from pagedvid.attention.layer_bias import BiasPlanner
from pagedvid.attention.tiles import Decoding, Group, Piece, Round, Tile, by_range
from pagedvid.cache.plan import RangePlan
from pagedvid.cache.pool import PagePool
from pagedvid.cache.spec import CacheSpec
from pagedvid.codecs.assignment import KINDS, ChunkCodecs, CodecPair, HeadGroups, Heads
from pagedvid.codecs.book import CodecBook
from pagedvid.codecs.heads import index_among, index_of, query_heads
from pagedvid.codecs.spec import CodecSpec
from pagedvid.correction.formula import BiasSource, bias_source
from pagedvid.rotary.angles import Angles

Use = tuple[BiasSource | None, int, bool]
"""What must be the same in all heads of a tile: how a column is corrected, along which axes (their id), and whether it
is read in 8 bits."""
TOGETHER_BYTES = 32 * 2**20
"""Most decoded keys and values of ranges that are attended together: beyond it, one call more costs nothing."""


class HistoryView(Protocol):
    """What a prepared step decides about the stored keys that it reads."""

    @property
    def has_rope(self) -> bool:
        """Whether it rotates keys that are stored before rotary embedding."""
        ...

    @property
    def pulls_queries(self) -> bool:
        """Whether b of every part needs queries of its own, pulled back to its frame."""
        ...

    def angles(self, columns: Sequence[Column], *, stored_rotated: bool) -> Angles | None:
        """The angles by which the keys of all chunks rotate, range by range; None: they do not."""
        ...

    def part_tokens(self, column: Column, layer: int) -> tuple[int, ...]:
        """The tokens of the parts of a corrected chunk that have a b of their own; their sum is the chunk's."""
        ...

    def takes_fp8(self, codecs: CodecPair) -> bool:
        """Whether pages of these codecs are decoded to 8-bit floats, for a library of its own."""
        ...


@dataclass(frozen=True)
class ReadPlanner:
    """Plans how the layers of a cache are read."""

    pool: PagePool
    spec: CacheSpec
    book: CodecBook
    scratch_bytes: int
    uses_kernels: bool
    """Whether pages are read by their codecs' kernels, or by PyTorch operations."""

    @cached_property
    def _bias(self) -> BiasPlanner:
        return BiasPlanner(self.pool, self.spec.head_dim)

    def most_ranges(self, range_: RangePlan, num_current_tokens: int, dtype: torch.dtype) -> int:
        """How many ranges like this one are attended together: as many as fit without cutting any of them.

        `num_current_tokens`: keys that it sees besides its history.
        """
        num_tokens = num_current_tokens + sum(read.chunk.num_tokens for read in range_.reads)
        return min(self.scratch_bytes, TOGETHER_BYTES) // (self.spec.num_kv_heads * self._head_bytes(num_tokens, dtype))

    def tiles(self, batch: Batch, layer: int, view: HistoryView, dtype: torch.dtype) -> list[Tile]:
        """What a layer reads, tile by tile; each KV head is in one tile.

        `dtype`: of the model, in which pages are decoded where they are not read in 8 bits.
        """
        alike = self._heads_alike(batch, layer, view)
        return [tile for each in alike for tile in self._tiles_of(batch, *each, layer, view, dtype)]

    def _heads_alike(self, batch: Batch, layer: int, view: HistoryView) -> list[tuple[Heads, Sequence[Column]]]:
        """Heads that can share tiles, and the columns that they see."""
        by_codecs = {column.codecs: self._uses(column.codecs, layer, view) for column in batch.columns}
        by_column = [by_codecs[column.codecs] for column in batch.columns]
        alike: dict[tuple[Use | None, ...], list[int]] = {}
        for head in self._every:
            alike.setdefault(tuple(uses.get(head) for uses in by_column), []).append(head)
        return [
            (tuple(heads), [column for column, use in zip(batch.columns, uses, strict=True) if use is not None])
            for uses, heads in alike.items()
        ]

    def _uses(self, codecs: ChunkCodecs, layer: int, view: HistoryView) -> dict[int, Use]:
        """How each head uses a column that is stored so; without heads that do not see it."""
        uses: dict[int, Use] = {}
        for heads, spec in codecs.groups("keys", layer, self._every):
            source = bias_source(self.spec.correction, spec, has_rope=view.has_rope)
            axes = id(self.book.codec(spec, "keys", layer, heads).axes)
            for head in heads:
                pair = codecs.at(layer, head)
                assert pair is not None
                uses[head] = source, axes, view.takes_fp8(pair)
        return uses

    @cached_property
    def _every(self) -> Heads:
        return tuple(range(self.spec.num_kv_heads))

    def _tiles_of(
        self,
        batch: Batch,
        heads: Heads,
        columns: Sequence[Column],
        layer: int,
        view: HistoryView,
        dtype: torch.dtype,
    ) -> list[Tile]:
        """The tiles of heads that see `columns`."""
        fp8 = {column: view.takes_fp8(pair) for column in columns if (pair := column.codecs.at(layer, heads[0]))}
        alone = [column for column in columns if fp8[column] or self._source(column, layer, heads, view) is not None]
        own = [column for column in columns if column not in alone]
        widest = max(batch.num_current_tokens + _tokens(own), _tokens(alone))
        num_heads = self.scratch_bytes // (batch.num_ranges * self._head_bytes(widest, dtype))
        most_tokens = widest
        if not num_heads:  # not even one head of the whole history fits
            most_tokens = self.scratch_bytes // (batch.num_ranges * self._head_bytes(1, dtype))
            own, alone, num_heads = [], list(columns), 1
        tiles = []
        for tile in _head_tiles(heads, num_heads):
            most_partials = max(1, self.scratch_bytes // self._partial_bytes(batch, tile, dtype))
            groups = _alike(alone, layer, view, fp8, most_tokens, most_partials)
            made = [self._group(each, layer, view, tile, fp8[each[0]]) for each in groups]
            rounds = tuple(
                Round(each, *self._bias.terms(each, layer, tile, batch.num_ranges, pulls_queries=view.pulls_queries))
                for each in _in_rounds(made, most_partials)
            )
            queries = query_heads(tile, self.spec.query_heads // self.spec.num_kv_heads)
            index, of_queries = (index_of(each, self.pool.device) for each in (tile, queries))
            tiles.append(Tile(index, of_queries, tuple(self._pieces(own, layer, view, tile)), rounds))
        return tiles

    def _partial_bytes(self, batch: Batch, heads: Heads, dtype: torch.dtype) -> int:
        """Bytes of a partial of all ranges over one chunk each."""
        num_queries = batch.queries.num_tokens * (self.spec.query_heads // self.spec.num_kv_heads)
        return batch.num_ranges * num_queries * len(heads) * self.spec.head_dim * dtype.itemsize

    def _head_bytes(self, num_tokens: int, dtype: torch.dtype) -> int:
        """Bytes of the decoded keys and values of one head."""
        return 2 * dtype.itemsize * num_tokens * self.spec.head_dim

    def _group(self, columns: Sequence[Column], layer: int, view: HistoryView, heads: Heads, is_fp8: bool) -> Group:
        pieces, num_tokens = tuple(self._pieces(columns, layer, view, heads)), columns[0].num_tokens
        is_corrected = any(piece.source is not None for piece in pieces)
        parts = view.part_tokens(columns[0], layer) if is_corrected else (num_tokens,)
        room_tokens = num_tokens if self.uses_kernels else max(piece.padded_tokens for piece in pieces)
        return Group(pieces, parts, is_fp8, room_tokens)

    def _pieces(self, columns: Sequence[Column], layer: int, view: HistoryView, heads: Heads) -> Iterator[Piece]:
        def alike(column: Column) -> tuple[int, list[HeadGroups]]:
            return column.num_tokens, [column.codecs.groups(kind, layer, heads) for kind in KINDS]

        first = 0
        for (num_tokens, groups), each in groupby(columns, alike):
            together = tuple(each)
            keys, values = (
                tuple(self._decoding(together, kind, layer, view, heads, *group) for group in of_kind)
                for kind, of_kind in zip(KINDS, groups, strict=True)
            )
            page = self.spec.shape.page
            padded = max(spec.padded_tokens(page, num_tokens) for of_kind in groups for _, spec in of_kind)
            source = self._source(together[0], layer, heads, view)
            yield Piece(together, first, keys, values, source, padded)
            first += len(together) * num_tokens

    def _decoding(
        self,
        columns: Sequence[Column],
        kind: str,
        layer: int,
        view: HistoryView,
        tile: Heads,
        heads: Heads,
        spec: CodecSpec,
    ) -> Decoding:
        """How `heads` of a tile are read, which share a codec."""
        codec = self.book.codec(spec, kind, layer, heads)
        kernels = self.book.access(codec, self.pool.device, self.uses_kernels)
        reads = by_range(columns)
        pages_ShP = torch.stack([read.chunk.table.layer_on(self.pool.device, kind, layer, heads) for read in reads])
        angles = view.angles(columns, stored_rotated=codec.spec.stores_rotated) if kind == "keys" else None
        return Decoding(index_among(heads, tile, self.pool.device), kernels, pages_ShP, angles)

    def _source(self, column: Column, layer: int, heads: Heads, view: HistoryView) -> BiasSource | None:
        """Where b of heads comes from that are corrected alike."""
        pair = column.codecs.at(layer, heads[0])
        return None if pair is None else bias_source(self.spec.correction, pair.keys, has_rope=view.has_rope)


def _head_tiles(heads: Heads, most_heads: int) -> list[Heads]:
    """Heads in equal tiles of up to `most_heads`."""
    per_tile = -(-len(heads) // -(-len(heads) // min(len(heads), most_heads)))
    return [heads[first : first + per_tile] for first in range(0, len(heads), per_tile)]


def _tokens(columns: Sequence[Column]) -> int:
    return sum(column.num_tokens for column in columns)


def _in_rounds(groups: Sequence[Group], most_partials: int) -> list[tuple[Group, ...]]:
    """The groups in order, each round with up to that many partials, but at least one group."""
    rounds: list[list[Group]] = []
    num_partials = 0
    for group in groups:
        added = len(group.parts) * group.num_columns
        if not rounds or num_partials + added > most_partials:
            rounds.append([])
            num_partials = 0
        rounds[-1].append(group)
        num_partials += added
    return [tuple(each) for each in rounds]


def _alike(
    columns: Sequence[Column],
    layer: int,
    view: HistoryView,
    fp8: Mapping[Column, bool],
    most_tokens: int,
    most_columns: int,
) -> list[list[Column]]:
    """Columns that one dense call can read: of equal length, parts and precision, up to `most_tokens` and
    `most_columns`, but at least one."""
    alike: dict[tuple[tuple[int, ...], bool], list[Column]] = {}
    for column in columns:
        alike.setdefault((view.part_tokens(column, layer), fp8[column]), []).append(column)
    groups = []
    for (parts, _), each in alike.items():
        size = max(1, min(most_columns, most_tokens // sum(parts)))
        groups += [each[first : first + size] for first in range(0, len(each), size)]
    return groups

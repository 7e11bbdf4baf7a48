"""Plans what one layer of a batch reads, once for all denoise steps of the same chunks.

If the scratch cannot hold what a range sees, the heads are cut into tiles, and for a single head also the chunks into
groups, and the groups into rounds.

Axes: E ranges, J columns, S = E * J chunks, h heads of a piece, P pages of a head, D head_dim.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, pairwise
from typing import Protocol

import torch
from torch import Tensor

from pagedvid.attention.batches import Batch, Column
from pagedvid.attention.layer_bias import BiasPlanner
from pagedvid.attention.tiles import Group, Piece, Round, Tile, by_range
from pagedvid.cache.plan import RangePlan
from pagedvid.cache.pool import PagePool
from pagedvid.cache.spec import CacheSpec
from pagedvid.codecs.assignment import KINDS, CodecPair
from pagedvid.codecs.book import CodecBook
from pagedvid.correction.formula import BiasSource, bias_source
from pagedvid.rotary.angles import Angles

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
        """Whether b of every part takes queries of its own."""
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
        """What a layer reads, tile by tile."""
        alike = self._heads_alike(batch, layer, view)
        return [tile for each in alike for tile in self._tiles_of(batch, *each, layer, view, dtype)]

    def _heads_alike(self, batch: Batch, layer: int, view: HistoryView) -> list[tuple[slice, Sequence[Column]]]:
        """Neighbouring heads that can share tiles, and the columns that they see."""
        every, columns = slice(0, self.spec.num_kv_heads), batch.columns
        runs = (run for column in columns for run, _ in column.codecs.runs(layer, every))
        bounds = sorted({bound for run in (every, *runs) for bound in (run.start, run.stop)})
        cuts = (slice(start, stop) for start, stop in pairwise(bounds))
        alike: list[tuple[slice, Sequence[Column]]] = []
        for uses, each in groupby(cuts, lambda cut: [self._use(column, layer, cut, view) for column in columns]):
            first, *more = each
            seen = [column for column, use in zip(columns, uses, strict=True) if use is not None]
            alike.append((slice(first.start, more[-1].stop if more else first.stop), seen))
        return alike

    def _use(self, column: Column, layer: int, heads: slice, view: HistoryView) -> tuple[object, ...] | None:
        """What must be the same in all heads of a tile: how a column is corrected and along which axes, and whether it
        is read in 8 bits; None: it is not seen."""
        pair = column.codecs.at(layer, heads.start)
        if pair is None:
            return None
        keys, _ = self.book.pair(column.codecs, layer, heads)
        return self._source(column, layer, heads, view), id(keys.axes), view.takes_fp8(pair)

    def _tiles_of(
        self,
        batch: Batch,
        heads: slice,
        columns: Sequence[Column],
        layer: int,
        view: HistoryView,
        dtype: torch.dtype,
    ) -> list[Tile]:
        """The tiles of heads that see `columns`."""
        fp8 = {column: view.takes_fp8(pair) for column in columns if (pair := column.codecs.at(layer, heads.start))}
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
            tiles.append(Tile(tile, tuple(self._pieces(own, layer, view, tile)), rounds))
        return tiles

    def _partial_bytes(self, batch: Batch, heads: slice, dtype: torch.dtype) -> int:
        """A partial of all ranges over one chunk each."""
        num_queries = batch.queries.num_tokens * (self.spec.query_heads // self.spec.num_kv_heads)
        return batch.num_ranges * num_queries * (heads.stop - heads.start) * self.spec.head_dim * dtype.itemsize

    def _head_bytes(self, num_tokens: int, dtype: torch.dtype) -> int:
        """Keys and values of one head."""
        return 2 * dtype.itemsize * num_tokens * self.spec.head_dim

    def _group(self, columns: Sequence[Column], layer: int, view: HistoryView, heads: slice, is_fp8: bool) -> Group:
        pieces, num_tokens = tuple(self._pieces(columns, layer, view, heads)), columns[0].num_tokens
        is_corrected = any(piece.source is not None for piece in pieces)
        parts = view.part_tokens(columns[0], layer) if is_corrected else (num_tokens,)
        room_tokens = num_tokens if self.uses_kernels else max(piece.padded_tokens for piece in pieces)
        return Group(pieces, parts, is_fp8, room_tokens)

    def _pieces(self, columns: Sequence[Column], layer: int, view: HistoryView, heads: slice) -> Iterator[Piece]:
        first = 0
        for (num_tokens, runs), each in groupby(columns, lambda it: (it.num_tokens, it.codecs.runs(layer, heads))):
            alike = tuple(each)
            for run, _ in runs:
                of_tile = None if run == heads else slice(run.start - heads.start, run.stop - heads.start)
                codecs = self.book.pair(alike[0].codecs, layer, run)
                keys, values = (self.book.access(codec, self.pool.device, self.uses_kernels) for codec in codecs)
                key_pages, value_pages = (self._pages(alike, kind, layer, run) for kind in KINDS)
                angles = view.angles(alike, stored_rotated=codecs[0].spec.stores_rotated)
                source = self._source(alike[0], layer, run, view)
                all_pages = zip(codecs, (key_pages, value_pages), strict=True)
                padded = max(codec.page_tokens * pages.shape[2] for codec, pages in all_pages)
                yield Piece(alike, first, of_tile, keys, values, key_pages, value_pages, angles, source, padded)
            first += len(alike) * num_tokens

    def _pages(self, columns: Sequence[Column], kind: str, layer: int, heads: slice) -> Tensor:
        tables = [read.chunk.table.layer_on(self.pool.device, kind, layer, heads) for read in by_range(columns)]
        return torch.stack(tables)

    def _source(self, column: Column, layer: int, heads: slice, view: HistoryView) -> BiasSource | None:
        """Where b of heads comes from that are corrected alike."""
        pair = column.codecs.at(layer, heads.start)
        return None if pair is None else bias_source(self.spec.correction, pair.keys, has_rope=view.has_rope)


def _head_tiles(heads: slice, most_heads: int) -> list[slice]:
    """Heads in equal tiles of up to `most_heads`."""
    num_heads = heads.stop - heads.start
    per_tile = -(-num_heads // -(-num_heads // min(num_heads, most_heads)))
    return [slice(first, min(first + per_tile, heads.stop)) for first in range(heads.start, heads.stop, per_tile)]


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

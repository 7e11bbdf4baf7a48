"""What one layer of a batch reads, looked up once and kept for all denoise steps of the same chunks.

Of the keys that a range sees, those that need no correction form one sequence for the dense library, its `own`:
context, current chunk, and history that is not corrected. Every corrected chunk is a sequence of its own, because its
partial is corrected before it is merged. If the scratch cannot hold a sequence, the heads are cut into tiles, and for a
single head also the chunks into groups.

    tile (heads)   own     | context | current | piece: columns 0 1 | piece: column 2 |      one dense call
                   groups  | piece: columns 3 4 | piece: column 5 |                          one dense call, a partial
                                                                                             for each column
A piece is one decoding call for keys and one for values: (chunks, heads, codec). All heads of a tile see the same
chunks and correct the same ones in the same way; where heads differ in that, they form different tiles.

Axes: E ranges, J columns, S = E * J chunks, h heads of the tile, P pages of a head, D head_dim.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, groupby, pairwise
from typing import Protocol

import torch
from torch import Tensor

from pagedvid.attention.batches import Batch, Column
from pagedvid.attention.merge import BiasTerms
from pagedvid.cache.plan import RangePlan, Read
from pagedvid.cache.pool import PagePool
from pagedvid.cache.spec import CacheSpec
from pagedvid.codecs.assignment import KINDS, CodecPair
from pagedvid.codecs.base import PageKernels
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
class Piece:
    """Neighbouring columns with the same codecs and length, in heads of a tile that are stored alike."""

    columns: tuple[Column, ...]
    first_token: int
    """History tokens before it in the tile's own sequence, or in the sequences of a group."""
    heads: slice | None
    """Which heads of the tile; None: all."""
    keys: PageKernels
    values: PageKernels
    key_pages: Tensor
    """int32 [S, h, P]."""
    value_pages: Tensor
    angles: Angles | None
    source: BiasSource | None
    """Where b comes from; None: its keys are not corrected."""
    padded_tokens: int
    """Tokens that the pages of a chunk have room for."""

    @cached_property
    def num_tokens(self) -> int:
        """Tokens of each chunk."""
        return self.columns[0].num_tokens


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
        return sum(len(piece.columns) for piece in self.pieces if piece.heads is None or piece.heads.start == 0)

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

    heads: slice
    own: tuple[Piece, ...]
    rounds: tuple[Round, ...]
    """More than one only if the scratch cannot hold all partials."""

    @cached_property
    def own_history_tokens(self) -> int:
        """History tokens of each range's own sequence."""
        return 0 if not self.own else self.own[-1].first_token + len(self.own[-1].columns) * self.own[-1].num_tokens


@dataclass(frozen=True)
class ReadPlanner:
    """Plans how the layers of a cache are read."""

    pool: PagePool
    spec: CacheSpec
    book: CodecBook
    scratch_bytes: int
    uses_kernels: bool
    """Whether pages are read by their codecs' kernels, or by PyTorch operations."""
    _on_device: dict[tuple[tuple[int, ...], ...], Tensor] = field(default_factory=dict, repr=False)

    def most_ranges(self, range_: RangePlan, dtype: torch.dtype) -> int:
        """How many ranges like this one are attended together."""
        num_tokens = range_.num_tokens + sum(read.chunk.num_tokens for read in range_.reads)
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
                Round(each, *self._bias(each, layer, view, tile, batch.num_ranges))
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

    def _bias(
        self, groups: Sequence[Group], layer: int, view: HistoryView, heads: slice, num_ranges: int
    ) -> tuple[BiasTerms | None, tuple[Variant, ...]]:
        if all(piece.source is None for group in groups for piece in group.pieces):
            return None, ()
        squares, alphas, numbers, pairs = [], [], [], []
        variants: list[Variant] = []
        for group in groups:
            for part, tokens in enumerate(group.parts):
                for _, each in groupby(group.pieces, lambda piece: piece.first_token):  # the same columns
                    pieces = list(each)
                    by_heads, axes = zip(*(self._square(piece, layer, heads, tokens) for piece in pieces), strict=True)
                    squares.append(torch.cat(by_heads, 1).unflatten(0, (num_ranges, -1)))
                    alphas.append(self._alpha(pieces[0], layer, heads).unflatten(0, (num_ranges, -1)))
                    for column in pieces[0].columns:
                        numbers.append(_variant(variants, Variant(axes[0], column, part), view.pulls_queries))
                        pairs.append(pieces[0].source is not None and pieces[0].source.rotates)
        flags = self._numbers(tuple(numbers), tuple(pairs))
        return BiasTerms(torch.cat(squares, 1), torch.cat(alphas, 1), *flags), tuple(variants)

    def _numbers(self, *rows: tuple[int, ...]) -> Tensor:
        """int32 [rows, J] on the device, to which the same numbers are copied once."""
        if rows not in self._on_device:
            self._on_device[rows] = torch.tensor(rows, dtype=torch.int32).to(self.pool.device)
        return self._on_device[rows]

    def _square(self, piece: Piece, layer: int, heads: slice, tokens: slice) -> tuple[Tensor, Tensor | None]:
        """Mean of step_size^2 of some tokens of every chunk, or 12 times the change of variance, float32 [S, h, D]; and
        the axes along which it is given."""
        chunks = [read.chunk for read in by_range(piece.columns)]
        if piece.source is not None and not piece.source.by_variance:
            square = piece.keys.mean_square_step_sizes(
                self.pool.records, piece.key_pages, tokens.stop - tokens.start, tokens.start
            )
            if square is not None:
                return square, piece.keys.axes
        kept = [
            chunk.variance[layer, heads][piece.heads or slice(None)] for chunk in chunks if chunk.variance is not None
        ]
        if piece.source is not None and kept:
            return 12 * torch.stack(kept).to(self.pool.device, torch.float32), None
        shape = (*piece.key_pages.shape[:2], self.spec.head_dim)
        return torch.zeros(shape, dtype=torch.float32, device=self.pool.device), None

    def _alpha(self, piece: Piece, layer: int, heads: slice) -> Tensor:
        """Of all heads of the tile, float32 [S, h]."""
        kept = [read.chunk.alpha for read in by_range(piece.columns)]
        if piece.source is None or any(alpha is None for alpha in kept):
            shape = (len(kept), heads.stop - heads.start)
            return torch.ones(shape, dtype=torch.float32, device=self.pool.device)
        return torch.stack([alpha[layer, heads] for alpha in kept if alpha is not None]).to(self.pool.device)


def _head_tiles(heads: slice, most_heads: int) -> list[slice]:
    """Heads in equal tiles of up to `most_heads`."""
    num_heads = heads.stop - heads.start
    per_tile = -(-num_heads // -(-num_heads // min(num_heads, most_heads)))
    return [slice(first, min(first + per_tile, heads.stop)) for first in range(heads.start, heads.stop, per_tile)]


def _variant(variants: list[Variant], wanted: Variant, is_own: bool) -> int:
    """The number of a variant, which is added unless there is one with the same axes. `is_own`: add it anyway."""
    for number, each in enumerate(variants):
        if each.axes is wanted.axes and not is_own:
            return number
    variants.append(wanted)
    return len(variants) - 1


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


def by_range(columns: Sequence[Column]) -> list[Read]:
    """The reads of all columns, range by range."""
    return [read for reads in zip(*(column.reads for column in columns), strict=True) for read in reads]


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

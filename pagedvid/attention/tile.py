"""Attention of one batch of ranges in some heads of one layer, source by source: decode, attend, correct, merge.

`PreparedStep` goes through the batches and heads of a step. `RotaryTile` reads keys that rotate by their positions (or
have none); projective_tile.py reads keys and values through a projection.

Axes: E ranges, T tokens, h KV heads, G query heads per KV head, M = G * T query rows, n keys, D head_dim.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from pagedvid.attention.backend import PreparedView
from pagedvid.attention.chunk_scratch import Scratch
from pagedvid.attention.groups import ContextSource, CurrentSource, PagedSource, RangeBatch, Source
from pagedvid.attention.partial import Partial, flash_partial, merge_into
from pagedvid.attention.rotation import Rotation
from pagedvid.attention.sources import Context
from pagedvid.cache.pool import PagePool
from pagedvid.cache.spec import CacheSpec
from pagedvid.codecs.base import Codec, saturated
from pagedvid.codecs.book import CodecBook
from pagedvid.correction.formula import QuerySquares, bias_source
from pagedvid.rotary.tables import rotate


@dataclass(frozen=True)
class PreparedStep(PreparedView):
    """The batches of a step in one view, each with the heads that are read together."""

    num_kv_heads: int
    make_tile: Callable[[int, slice, Context], Tile]
    """Of (layer, heads, context)."""
    batches: Sequence[tuple[Any, Sequence[slice]]]
    """(batch as the tile takes it, its head tiles)."""

    @override
    def attend(self, layer: int, q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, context: Context = ()) -> Tensor:
        group = q_THD.shape[1] // self.num_kv_heads
        out_THGD = torch.empty_like(q_THD).unflatten(1, (self.num_kv_heads, group))
        for batch, head_tiles in self.batches:
            for heads in head_tiles:
                q_ThD = q_THD[:, heads.start * group : heads.stop * group]
                tile = self.make_tile(layer, heads, context)
                tile.attend(q_ThD, batch, k_THD[:, heads], v_THD[:, heads], out_THGD[:, heads])
        return out_THGD.flatten(1, 2)


@dataclass(frozen=True)
class Decoded:
    """Keys or values of one source as they are stored."""

    tokens: Tensor
    """[E, h, n, D]."""
    records: Tensor
    """[E * h, pages, bytes]."""
    codec: Codec


@dataclass(frozen=True)
class PageReader:
    """What the tiles of a cache share: its pages, their codecs, and the buffers to decode into."""

    pool: PagePool
    spec: CacheSpec
    book: CodecBook
    scratch: Scratch


@dataclass
class Tile(ABC):
    """What tiles of both views share: pages become tensors, and partials become outputs."""

    reader: PageReader
    layer: int
    heads: slice
    context: Context

    @abstractmethod
    def attend(self, q_ThD: Tensor, batch: Any, k_ThD: Tensor, v_ThD: Tensor, out_ThGD: Tensor) -> None:
        """Writes the batch's tokens of `out_ThGD`, all sources merged. `q_ThD` has h * G heads."""

    def decode(self, kind: str, source: PagedSource, buffer: str, dtype: torch.dtype) -> Decoded:
        """Decodes the "keys" or "values" of a source, as they are stored, into the named buffer."""
        codec = self.reader.book.pair(source.codecs, self.layer, self.heads)[kind == "values"]
        pages = [read.chunk.table.layer(kind, self.layer)[self.heads] for read in source.reads]
        records = self.reader.pool.read(np.concatenate(pages))
        shape = (len(records), records.shape[1] * codec.page_tokens, self.reader.spec.head_dim)
        tokens = codec.decode(records, source.num_tokens, self.reader.scratch.buffer(buffer, shape, dtype))
        if dtype == torch.float16:
            saturated(tokens)
        return Decoded(tokens.unflatten(0, (len(source.reads), -1)), records, codec)

    def bias(
        self,
        source: PagedSource,
        keys: Decoded,
        squares: QuerySquares,
        tokens: slice,
        *,
        has_rope: bool,
        rows: slice | Tensor = slice(None),
    ) -> Tensor | None:
        """alpha * b of some of a source's tokens, [E, h, M]; None where nothing is corrected."""
        spec = self.reader.spec
        origin = bias_source(spec.correction, keys.codec.spec, has_rope=has_rope)
        if origin is None:
            return None
        num_tokens = tokens.stop - tokens.start
        error = origin.quant_error(
            lambda: self._by_range(keys, keys.codec.mean_square_step_sizes(keys.records, num_tokens, tokens.start)),
            self._kept([read.chunk.variance for read in source.reads]),
            keys.codec.axes,
            self._kept([read.chunk.alpha for read in source.reads]),
        )
        return None if error is None else error.bias(squares, spec.scale, rows)

    @staticmethod
    def _by_range(keys: Decoded, x_RD: Tensor | None) -> Tensor | None:
        return None if x_RD is None else x_RD.unflatten(0, keys.tokens.shape[:2])

    def _kept(self, by_chunk: Sequence[Tensor | None]) -> Tensor | None:
        """What chunks keep for this layer and these heads, [E, h, ...]; None when they keep nothing."""
        kept = [x[self.layer, self.heads] for x in by_chunk if x is not None]
        return torch.stack(kept) if kept else None

    def context_of(self, source: ContextSource) -> tuple[Tensor, Tensor]:
        """Context keys and values as they were given, [E, n, h, D]."""
        pairs = [pair for number in source.numbers if (pair := self.context[number]) is not None]
        return torch.stack([k[:, self.heads] for k, _ in pairs]), torch.stack([v[:, self.heads] for _, v in pairs])

    @staticmethod
    def add(total: Partial, source: Source, partial: Partial) -> None:
        """Merges a partial into the rows of `total` that it belongs to."""
        if len(source.rows) == len(total.out):
            merge_into(total, partial)
            return
        part = Partial(total.out[source.rows], total.lse[source.rows])
        merge_into(part, partial)
        total.out[source.rows], total.lse[source.rows] = part.out, part.lse

    @staticmethod
    def write(total: Partial, batch: RangeBatch, out_ThGD: Tensor) -> None:
        """Writes the batch's tokens to their places in the packed output."""
        out_ETHGD = total.out.unflatten(2, (out_ThGD.shape[2], -1)).permute(0, 3, 1, 2, 4)
        out_ThGD.index_copy_(0, batch.tokens.flatten(), out_ETHGD.flatten(0, 1).to(out_ThGD.dtype))


@dataclass
class RotaryTile(Tile):
    """Keys are rotated by their positions, values are read as they are."""

    rotation: Rotation

    @override
    def attend(self, q_ThD: Tensor, batch: RangeBatch, k_ThD: Tensor, v_ThD: Tensor, out_ThGD: Tensor) -> None:
        q_EhMD = head_major(self.rotation.rotated(q_ThD, batch.tokens), q_ThD.shape[1] // k_ThD.shape[1])
        own, *others = batch.sources
        squares = QuerySquares(q_EhMD)
        total = self._partial(own, q_EhMD, squares, k_ThD, v_ThD)
        for source in others:
            self.add(total, source, self._partial(source, q_EhMD, squares, k_ThD, v_ThD))
        self.write(total, batch, out_ThGD)

    def _partial(self, source: Source, q_EhMD: Tensor, squares: QuerySquares, k_ThD: Tensor, v_ThD: Tensor) -> Partial:
        """Attention of the source's ranges over its keys, corrected."""
        rows = slice(None) if len(source.rows) == len(q_EhMD) else source.rows
        if isinstance(source, PagedSource):
            return self._paged_partial(source, q_EhMD, squares, rows)
        if isinstance(source, CurrentSource):
            k, v = self.rotation.rotated(k_ThD, source.tokens), v_ThD[source.tokens]
        else:
            k, v = self.context_of(source)
            k = self.rotation.in_page_order(k)
        return flash_partial(q_EhMD[rows], k.transpose(1, 2), v.transpose(1, 2), self.reader.spec.scale)

    def _paged_partial(
        self, source: PagedSource, q_EhMD: Tensor, squares: QuerySquares, rows: slice | Tensor
    ) -> Partial:
        # Keys are decoded into the first buffer; if they are rotated into the second, values can reuse the first.
        free = "second"
        keys = self.decode("keys", source, "first", q_EhMD.dtype)
        k, angles = keys.tokens, source.shift if keys.codec.spec.stores_rotated else source.angles
        if angles is not None:
            rotated = self.reader.scratch.buffer("second", k.shape, q_EhMD.dtype)
            k = rotate(k, *angles, out=rotated)
            free = "first"
        b = self.bias(source, keys, squares, slice(0, source.num_tokens), has_rope=source.angles is not None, rows=rows)
        values = self.decode("values", source, free, q_EhMD.dtype)
        partial = flash_partial(q_EhMD[rows], k, values.tokens, self.reader.spec.scale)
        if b is not None:
            partial.lse -= b
        return partial


def head_major(q_ETHD: Tensor, group: int) -> Tensor:
    """[E, T, h * G, D] -> [E, h, G * T, D]: query heads of a KV head become more rows, as there is no mask."""
    return q_ETHD.unflatten(2, (-1, group)).permute(0, 2, 3, 1, 4).flatten(2, 3)

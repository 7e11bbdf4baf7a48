"""Attention of one batch of ranges in some heads of one layer, source by source: decode, attend, correct, merge.

`RotaryTile` is for keys that turn by their positions (or have none); attention/projective_tile.py for keys and values
read through a projection.

Axes: E ranges, T tokens, h KV heads, G query heads per KV head, M = G * T query rows, n keys, D head_dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pagedvid.attention.flash_cpu import flash_partial
from pagedvid.attention.groups import ContextSource, CurrentSource, PagedSource, RangeBatch, Source
from pagedvid.attention.noise import key_noise
from pagedvid.attention.partial import Partial, merge_into
from pagedvid.attention.rotation import Rotation
from pagedvid.attention.store import LayerStore
from pagedvid.cache.spec import CacheSpec
from pagedvid.codecs.base import Codec, saturated
from pagedvid.codecs.page import is_quantized
from pagedvid.correction.formula import QuerySquares
from pagedvid.rotary.tables import rotate

Context = Sequence[tuple[Tensor, Tensor] | None]
"""For each range of a step its context keys and values, [n, Hkv, D] each, or None; empty when no range has any."""


@dataclass(frozen=True)
class Decoded:
    """Keys or values of one source as they are stored."""

    tokens: Tensor
    """[E, h, n, D]."""
    records: Tensor
    """[E * h, pages, bytes]."""
    codec: Codec


@dataclass
class Tile:
    """What both kinds share: pages to tensors, and partials to outputs."""

    store: LayerStore
    buffers: dict[str, Tensor]
    layer: int
    heads: slice
    context: Context

    @property
    def spec(self) -> CacheSpec:
        """What the cache is made for."""
        return self.store.spec

    def decode(self, kind: str, source: PagedSource, buffer: str, dtype: torch.dtype) -> Decoded:
        """The "keys" or "values" of a source, as they are stored, in the named buffer."""
        name = source.codecs.of(kind, self.layer)
        codec, num_heads = self.store.book.codec(name, kind, self.layer, self.heads), self.spec.num_kv_heads
        pages = [read.chunk.layer_pages(kind, self.layer, num_heads)[self.heads] for read in source.reads]
        records = self.store.pool.read(np.concatenate(pages))
        shape = (len(records), self.padded_tokens(source, name), self.spec.head_dim)
        tokens = saturated(codec.decode(records, source.num_tokens, self.buffer(buffer, shape, dtype)))
        return Decoded(tokens.unflatten(0, (len(source.reads), -1)), records, codec)

    def padded_tokens(self, source: PagedSource, name: str) -> int:
        """Tokens that whole pages of a codec have room for."""
        return self.store.book.page.padded_tokens(source.num_tokens, name)

    def buffer(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A reused tensor; grows to the largest size asked for."""
        num_elements = torch.Size(shape).numel()
        buffer = self.buffers.get(name)
        if buffer is None or buffer.dtype != dtype or buffer.numel() < num_elements:
            with torch.inference_mode(False):  # a host may enter inference mode for some steps and not for others
                buffer = self.buffers[name] = torch.empty(num_elements, dtype=dtype, device=self.store.pool.device)
        return buffer[:num_elements].view(shape)

    @property
    def group(self) -> int:
        """Query heads of one KV head."""
        return self.spec.query_heads // self.spec.num_kv_heads

    def correction(
        self,
        source: PagedSource,
        keys: Decoded,
        squares: QuerySquares,
        tokens: slice,
        *,
        turns: bool,
        rows: slice | Tensor = slice(None),
    ) -> Tensor | float:
        """b [E, h, M] of some of a source's tokens, alpha in it; 0 where nothing is corrected."""
        if self.spec.correction == "off" or not is_quantized(keys.codec.name):
            return 0.0
        variance = self._kept([read.chunk.variance for read in source.reads])
        rowwise = None if variance is None else variance.flatten(0, 1).float()
        num_tokens = tokens.stop - tokens.start
        noise = key_noise(
            self.spec.correction, keys.codec, keys.records, rowwise, turns, num_tokens, tokens.start
        ).unflatten(keys.tokens.shape[:2])
        b = noise.bias(squares, self.spec.scale, rows)
        alpha = self._kept([read.chunk.alpha for read in source.reads])
        return b if alpha is None else alpha.unsqueeze(-1) * b

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
        """Puts the batch's tokens in their places of the packed output."""
        out_ETHGD = total.out.unflatten(2, (out_ThGD.shape[2], -1)).permute(0, 3, 1, 2, 4)
        out_ThGD.index_copy_(0, batch.tokens.flatten(), out_ETHGD.flatten(0, 1).to(out_ThGD.dtype))


@dataclass
class RotaryTile(Tile):
    """Keys turn by their positions, values are read as they are."""

    rotation: Rotation

    def attend(self, q_ThD: Tensor, batch: RangeBatch, k_ThD: Tensor, v_ThD: Tensor, out_ThGD: Tensor) -> None:
        """Writes the batch's tokens of `out_ThGD`: all sources merged. `q_ThD` has h * G heads."""
        q_EhMD = head_major(self.rotation.rotated(q_ThD, batch.tokens), self.group)
        own, *others = batch.sources
        squares = QuerySquares(q_EhMD)
        total = self._partial(own, q_EhMD, squares, k_ThD, v_ThD)
        for source in others:
            self.add(total, source, self._partial(source, q_EhMD, squares, k_ThD, v_ThD))
        self.write(total, batch, out_ThGD)

    def _partial(self, source: Source, q_EhMD: Tensor, squares: QuerySquares, k_ThD: Tensor, v_ThD: Tensor) -> Partial:
        """Attention of the source's ranges over its keys, corrected."""
        rows = slice(None) if len(source.rows) == len(q_EhMD) else source.rows
        if isinstance(source, CurrentSource):
            k, v = self.rotation.rotated(k_ThD, source.tokens), v_ThD[source.tokens]
            return flash_partial(q_EhMD[rows], k.transpose(1, 2), v.transpose(1, 2), self.spec.scale)
        if isinstance(source, ContextSource):
            k, v = self.context_of(source)
            k = self.rotation.in_page_order(k)
            return flash_partial(q_EhMD[rows], k.transpose(1, 2), v.transpose(1, 2), self.spec.scale)
        # Two buffers: keys are decoded into the first and turned into the second; then values may use the first.
        free = "second"
        keys = self.decode("keys", source, "first", q_EhMD.dtype)
        k, angles = keys.tokens, source.moves if keys.codec.stores_rotated else source.angles
        if angles is not None:
            num_rows, num_tokens = keys.tokens.shape[0] * keys.tokens.shape[1], source.num_tokens
            shape = (num_rows, num_tokens, self.spec.head_dim)
            k = rotate(k, *angles, out=self.buffer("second", shape, q_EhMD.dtype).unflatten(0, k.shape[:2]))
            free = "first"
        b = self.correction(
            source, keys, squares, slice(0, source.num_tokens), turns=source.angles is not None, rows=rows
        )
        values = self.decode("values", source, free, q_EhMD.dtype)
        partial = flash_partial(q_EhMD[rows], k, values.tokens, self.spec.scale)
        partial.lse -= b
        return partial


def head_major(q_ETHD: Tensor, group: int) -> Tensor:
    """[E, T, h * G, D] -> [E, h, G * T, D]: query heads of one KV head become more rows, as there is no mask."""
    return q_ETHD.unflatten(2, (-1, group)).permute(0, 2, 3, 1, 4).flatten(2, 3)

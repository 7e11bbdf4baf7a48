"""The writing half of a commit pass, and the reading of whole layers: keys and values become pages and come back.

Keys arrive before rotary embedding and in half layout. What the correction needs beside the pages is taken here, where
keys are at hand both as they were and as they are stored:

    variance   Var k' - Var k of every channel over the chunk's tokens
    alpha      the true shift of log Z that the rounding just caused, against the foretold b, under queries of this very
               pass (quant/correction.py), turned to where those of the next chunk will stand, which read these keys
               first: at their own place they find their own tokens, and alpha comes out wrong. A chunk that is read in
               several views has one factor, fitted to the queries of all of them (attention/measure.py)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pagedvid.attention.measure import ProjectedQueries, StoredKeys, projected_effect, rotary_effect
from pagedvid.cache.chunk import Chunk, layer_pages
from pagedvid.cache.plan import PendingChunk, RangePlan
from pagedvid.cache.pool import PageIds, PagePool
from pagedvid.cache.spec import CacheSpec
from pagedvid.errors import NonFiniteError, StateError
from pagedvid.page_format import is_quantized
from pagedvid.quant.book import CodecBook
from pagedvid.quant.codec import Codec
from pagedvid.quant.correction import fit_alpha
from pagedvid.quant.rotary import RopeTables, turned

MEASURED_QUERIES = 32
"""Queries of the pass, evenly spread, on which alpha is fitted. More do no better (benchmarks/fidelity.py)."""


def sampled_tokens(range_: RangePlan) -> Tensor:
    """Packed tokens of a range whose queries measure alpha, int64."""
    num_sampled = min(range_.num_tokens, MEASURED_QUERIES)
    return range_.start + torch.arange(num_sampled) * (range_.num_tokens - 1) // max(1, num_sampled - 1)


@dataclass(frozen=True)
class LayerStore:
    """Whole layers of chunks, in and out of the pool. Axes: H KV heads, n tokens, S sampled queries, D head_dim."""

    pool: PagePool
    spec: CacheSpec
    book: CodecBook

    def write(
        self,
        pending: PendingChunk,
        layer: int,
        q_SHD: Tensor,
        k_nHD: Tensor,
        v_nHD: Tensor,
        rope: RopeTables | None,
        projected: Sequence[ProjectedQueries] = (),
    ) -> None:
        """Stores one layer of a pending chunk. `q_SHD`: sampled queries of the range, rotated; k: before that.

        `projected`: the same queries for every further view in which the chunk will be read.
        Raises NonFiniteError naming layer and heads, StateError when the layer was written before.
        """
        if layer in pending.layers_written:
            raise StateError(f"layer {layer} of chunk {pending.index} was attended twice in one commit pass")
        if pending.source is not None:
            k_HnD, v_HnD = self.read(pending.source, layer, rope)
        else:
            k_HnD, v_HnD = k_nHD.transpose(0, 1).float(), v_nHD.transpose(0, 1).float()
        codec = self._codec(pending.codecs.of("keys", layer), "keys", layer)
        exact = turned(k_HnD, rope, pending.position) if codec.stores_rotated else k_HnD
        records = self._write(pending, "keys", layer, exact)
        self._write(pending, "values", layer, v_HnD)
        if is_quantized(codec.name):
            padded_tokens = self.book.page.padded_tokens(pending.num_tokens, codec.name)
            stored = StoredKeys(exact, codec, records, padded_tokens, rope, pending.position)
            self._note_correction(pending, layer, stored, q_SHD, projected)
        pending.layers_written.add(layer)

    def read(self, chunk: Chunk, layer: int, rope: RopeTables | None) -> tuple[Tensor, Tensor]:
        """Stored keys (before rotary embedding) and values of one layer of a chunk, float32 [H, n, D].

        `rope`: as at its commit; needed for codecs that store keys after rotary embedding.
        """
        keys, values = (self._read(chunk, kind, layer) for kind in ("keys", "values"))
        if self._codec(chunk.codecs.of("keys", layer), "keys", layer).stores_rotated:
            keys = turned(keys, rope, chunk.position, backwards=True)
        return keys, values

    def _codec(self, name: str, kind: str, layer: int) -> Codec:
        return self.book.codec(name, kind, layer, slice(0, self.spec.num_kv_heads))

    def _read(self, chunk: Chunk, kind: str, layer: int) -> Tensor:
        name = chunk.codecs.of(kind, layer)
        records = self.pool.read(chunk.layer_pages(kind, layer, self.spec.num_kv_heads))
        padded = self.book.page.padded_tokens(chunk.num_tokens, name)
        buffer = torch.empty(self.spec.num_kv_heads, padded, self.spec.head_dim, device=self.pool.device)
        return self._codec(name, kind, layer).decode(records, chunk.num_tokens, buffer)

    def _write(self, pending: PendingChunk, kind: str, layer: int, x_HnD: Tensor) -> Tensor:
        """Encodes and stores; returns the records [H, P, B]."""
        name = pending.codecs.of(kind, layer)
        try:
            records = self._codec(name, kind, layer).encode(x_HnD)
        except NonFiniteError as error:
            heads = ", ".join(map(str, error.rows))
            raise NonFiniteError(
                f"{kind} of layer {layer}, KV head {heads}, chunk {pending.index} cannot be stored as {name}: {error}. "
                "The commit was rolled back; look for an overflow in the model's forward.",
                error.rows,
            ) from error
        self.pool.write(self._pages(pending, kind, layer), records)
        return records

    def _pages(self, pending: PendingChunk, kind: str, layer: int) -> PageIds:
        return layer_pages(pending.pages, pending.indptr, kind, layer, self.spec.num_kv_heads)

    def _note_correction(
        self,
        pending: PendingChunk,
        layer: int,
        stored: StoredKeys,
        q_SHD: Tensor,
        projected: Sequence[ProjectedQueries],
    ) -> None:
        if pending.variance is not None:
            pending.variance[layer] = stored.variance_change().to(pending.variance)
            stored = replace(stored, variance_change_HD=pending.variance[layer].to(stored.exact_HnD))
        if pending.alpha is not None:
            effects = [rotary_effect(stored, q_SHD, self.spec.scale)]
            effects += [projected_effect(stored, queries, self.spec.scale) for queries in projected]
            shift, b = (torch.cat([effect[i] for effect in effects], dim=-1) for i in (0, 1))
            pending.alpha[layer] = fit_alpha(shift, b).to(pending.alpha.device)

"""The writing half of a commit pass, and the reading of whole layers: keys and values become pages and come back.

Keys arrive before rotary embedding and in half layout. What the correction needs beside the pages is taken here, where
keys are at hand both as they were and as they are stored:

    variance   Var k' - Var k of every channel over the chunk's tokens
    alpha      the factor on b that leaves the chunk its share of the attention of queries of this very pass, in the
               part of those that will read it (correction/formula.py, attention/measure.py). A chunk that is read in
               several views has one factor, fitted to the queries of all of them
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from pagedvid.attention.measure import (
    Effect,
    EncodedKeys,
    ProjectedQueries,
    StoredKeys,
    by_kv_head,
    projected_effect,
    rotary_effect,
)
from pagedvid.attention.rotation import Arrival, Readers
from pagedvid.cache.chunk import Chunk, layer_pages
from pagedvid.cache.plan import PendingChunk
from pagedvid.cache.pool import PageIds, PagePool
from pagedvid.cache.spec import CacheSpec
from pagedvid.codecs.base import Codec
from pagedvid.codecs.book import CodecBook
from pagedvid.codecs.page import is_quantized
from pagedvid.correction.formula import fit_alpha, log_mass
from pagedvid.errors import NonFiniteError, StateError
from pagedvid.rotary.checked import Ropes
from pagedvid.rotary.tables import RopeTables, turned

TOGETHER_VALUES = 2**19
"""Keys (or values) of a layer that are encoded in one call at most; with more, calls cost nothing next to the work."""


@dataclass(frozen=True)
class Writing:
    """One layer of a pending chunk as it arrives."""

    pending: PendingChunk
    readers: Readers | None
    """Sampled queries of the range (`Rotation.as_reading`); None where no alpha is fitted."""
    k_nHD: Tensor
    """As the model gave them."""
    v_nHD: Tensor
    arrival: Arrival = field(default_factory=Arrival)
    projected: Sequence[ProjectedQueries] = ()
    """The same queries for every further view in which the chunk will be read."""


@dataclass(frozen=True)
class LayerStore:
    """Whole layers of chunks, in and out of the pool. Axes: H KV heads, n tokens, S sampled queries, D head_dim."""

    pool: PagePool
    spec: CacheSpec
    book: CodecBook

    _effects: WeakKeyDictionary[PendingChunk, dict[int, Effect]] = field(
        default_factory=WeakKeyDictionary, init=False, repr=False
    )
    """What is measured of the layers of pending chunks, until all are."""

    @cached_property
    def ropes(self) -> Ropes:
        """Rotary tables, checked, where the pool is."""
        return Ropes(self.spec.head_dim // 2, self.pool.device)

    def write(self, layer: int, writings: Sequence[Writing], rope: RopeTables | None) -> None:
        """Stores one layer of pending chunks; small ones alike are encoded in one call.

        Raises NonFiniteError naming layer and heads, StateError when a layer was written before.
        """
        for writing in writings:
            if layer in writing.pending.layers_written:
                raise StateError(
                    f"layer {layer} of chunk {writing.pending.index} was attended twice in one commit pass"
                )
        for batch in self._batches(writings):
            self._write_batch(layer, batch, rope)
        for writing in writings:
            writing.pending.ropes[layer] = None if rope is None else self.ropes.checked(rope)
            if len(writing.pending.layers_written) == self.spec.num_layers:
                self._fit_alpha(writing.pending)

    def _batches(self, writings: Sequence[Writing]) -> list[list[Writing]]:
        """Neighbours of equal length and codecs, as many as stay small together; a large chunk is alone."""
        batches: list[list[Writing]] = []
        for writing in writings:
            pending = writing.pending
            most = TOGETHER_VALUES // (pending.num_tokens * self.spec.num_kv_heads * self.spec.head_dim)
            first = batches[-1][0].pending if batches else None
            is_alike = first and (first.num_tokens, first.codecs) == (pending.num_tokens, pending.codecs)
            if is_alike and len(batches[-1]) < most:
                batches[-1].append(writing)
            else:
                batches.append([writing])
        return batches

    def _write_batch(self, layer: int, batch: Sequence[Writing], rope: RopeTables | None) -> None:
        """Writings of one length and one set of codecs."""
        codec = self._codec(batch[0].pending.codecs.of("keys", layer), "keys", layer)
        keys, values = [], []
        for writing in batch:
            k_HnD, v_HnD = self._arrived(writing, layer, rope)
            is_turned = codec.stores_rotated  # in float32, whatever the keys arrive in
            keys.append(turned(k_HnD.float(), rope, writing.pending.position) if is_turned else k_HnD)
            values.append(v_HnD)
        records = self._encode_all([writing.pending for writing in batch], "keys", layer, keys)
        self._encode_all([writing.pending for writing in batch], "values", layer, values)
        for writing, exact, records_HPB in zip(batch, keys, records, strict=True):
            if self._is_kept(writing.pending, "keys", layer):
                _copy_correction(writing.pending, layer)
            elif self._is_measured(writing.pending, codec.name):
                stored = self._stored(writing.pending, layer, exact.float(), records_HPB, rope)
                self._note_correction(writing, layer, stored)
            writing.pending.layers_written.add(layer)

    def _stored(
        self, pending: PendingChunk, layer: int, exact_HnD: Tensor, records_HPB: Tensor, rope: RopeTables | None
    ) -> StoredKeys:
        codec = self._codec(pending.codecs.of("keys", layer), "keys", layer)
        padded_tokens = self.book.page.padded_tokens(pending.num_tokens, codec.name)
        return EncodedKeys(exact_HnD, codec, rope, pending.position, records_HPB, padded_tokens)

    def _is_measured(self, pending: PendingChunk, key_codec: str) -> bool:
        """Whether the correction takes something at commit."""
        return is_quantized(key_codec) and (pending.alpha is not None or pending.variance is not None)

    def _arrived(self, writing: Writing, layer: int, rope: RopeTables | None) -> tuple[Tensor, Tensor]:
        """Keys before rotary embedding and values, float32 [H, n, D]."""
        if writing.pending.source is not None:
            return self.read(writing.pending.source, layer, rope)
        k_nHD = writing.arrival.plain(writing.k_nHD)
        return k_nHD.transpose(0, 1).float(), writing.v_nHD.transpose(0, 1).float()

    def _encode_all(
        self, pending: Sequence[PendingChunk], kind: str, layer: int, tensors: Sequence[Tensor]
    ) -> Sequence[Tensor]:
        """Encodes and stores; returns the records [H, P, B] of each chunk."""
        if len(pending) == 1 or any(self._is_kept(chunk, kind, layer) for chunk in pending):
            return [
                self._copy(chunk, kind, layer)
                if self._is_kept(chunk, kind, layer)
                else self._write(chunk, kind, layer, x)
                for chunk, x in zip(pending, tensors, strict=True)
            ]
        name = pending[0].codecs.of(kind, layer)
        try:
            together = self._codec(name, kind, layer).encode(torch.cat(list(tensors)))
        except NonFiniteError:  # one by one, so that the error names the chunk that is to blame
            return [self._write(chunk, kind, layer, x) for chunk, x in zip(pending, tensors, strict=True)]
        records = together.chunk(len(pending))
        for chunk, records_HPB in zip(pending, records, strict=True):
            self.pool.write(self._pages(chunk, kind, layer), records_HPB)
        return records

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
        buffer = torch.empty(
            self.spec.num_kv_heads, padded, self.spec.head_dim, dtype=torch.float32, device=self.pool.device
        )
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

    def _is_kept(self, pending: PendingChunk, kind: str, layer: int) -> bool:
        """Whether a chunk that changes its codec does not change it here: what is stored is never quantized again."""
        if pending.source is None or pending.source.codecs.of(kind, layer) != pending.codecs.of(kind, layer):
            return False
        is_rotated = kind == "keys" and self._codec(pending.codecs.of(kind, layer), kind, layer).stores_rotated
        return not is_rotated or pending.source.position == pending.position

    def _copy(self, pending: PendingChunk, kind: str, layer: int) -> Tensor:
        """Takes over the bytes that the chunk is stored in; returns the records [H, P, B]."""
        assert pending.source is not None
        records = self.pool.read(pending.source.layer_pages(kind, layer, self.spec.num_kv_heads))
        self.pool.write(self._pages(pending, kind, layer), records)
        return records

    def _pages(self, pending: PendingChunk, kind: str, layer: int) -> PageIds:
        return layer_pages(pending.pages, pending.indptr, kind, layer, self.spec.num_kv_heads)

    def _note_correction(self, writing: Writing, layer: int, stored: StoredKeys) -> None:
        pending, readers = writing.pending, writing.readers
        if pending.variance is not None:
            pending.variance[layer] = stored.variance_change().to(pending.variance)
        if pending.alpha is None or readers is None:
            return
        kept = None if pending.variance is None else pending.variance[layer].to(stored.exact_HnD)
        here, *projected_here = self._log_masses_here(writing, readers, stored.rope)
        effects = [rotary_effect(stored, kept, readers, here, self.spec.scale)]
        for queries, log_mass_here in zip(writing.projected, projected_here, strict=True):
            effects.append(projected_effect(stored, kept, queries, log_mass_here, self.spec.scale))
        self._effects.setdefault(pending, {})[layer] = Effect.of_all(effects)

    def _fit_alpha(self, pending: PendingChunk) -> None:
        """All layers at once: next to a small chunk's own work, the fit of each by itself would take long."""
        effects = self._effects.pop(pending, None)
        if effects is None:
            return
        assert pending.alpha is not None
        log_odds, shift, b = (torch.stack(parts) for parts in zip(*effects.values(), strict=True))
        alpha = fit_alpha(log_odds, shift, b)
        for layer, alpha_H in zip(effects, alpha.to(pending.alpha.device), strict=True):
            pending.alpha[layer] = alpha_H

    def _log_masses_here(
        self, writing: Writing, readers: Readers, rope: RopeTables | None
    ) -> list[Tensor] | list[None]:
        """log Z of the readers over their own chunk, [H, Q] for each view; None where that is the stored chunk."""
        if writing.pending.source is None:
            return [None] * (1 + len(writing.projected))
        k_HnD = writing.arrival.plain(writing.k_nHD).transpose(0, 1).float()
        scale, num_heads = self.spec.scale, len(k_HnD)
        rotary = log_mass(by_kv_head(readers.here_SHD, num_heads), turned(k_HnD, rope, readers.position), scale)
        return [
            rotary,
            *(queries.scores(k_HnD, queries.here_SF44, scale).logsumexp(-1) for queries in writing.projected),
        ]


def _copy_correction(pending: PendingChunk, layer: int) -> None:
    """Takes over what the chunk kept for the correction of one layer."""
    source = pending.source
    assert source is not None
    if pending.alpha is not None and source.alpha is not None:
        pending.alpha[layer] = source.alpha[layer]
    if pending.variance is not None and source.variance is not None:
        pending.variance[layer] = source.variance[layer]

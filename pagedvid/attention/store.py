"""Writes whole layers of chunks to pages in a commit pass, and reads them back.

Codecs get keys before rotary embedding and in half layout, unless they store them rotated. What the correction needs
besides the pages is measured here, where both the exact and the stored keys are at hand:

    variance   Var k' - Var k of every channel over the chunk's tokens
    alpha      the factor on b that leaves the chunk its share of attention, measured with queries of this very pass in
               place of those that will read it (correction/fit.py, measure.py). A chunk that is read in several views
               has one factor, fitted to the queries of all of them
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from pagedvid.attention.measure import (
    Effect,
    ProjectedQueries,
    StoredKeys,
    by_kv_head,
    projected_effect,
    rotary_effect,
)
from pagedvid.attention.rotation import Readers, Rotation
from pagedvid.cache.chunk import Chunk
from pagedvid.cache.plan import PendingChunk
from pagedvid.cache.pool import PagePool
from pagedvid.cache.spec import CacheSpec
from pagedvid.codecs.base import Codec
from pagedvid.codecs.book import CodecBook
from pagedvid.correction.fit import fit_alpha, log_mass
from pagedvid.correction.formula import QuantError, bias_source
from pagedvid.errors import NonFiniteError, StateError
from pagedvid.rotary.checked import Ropes
from pagedvid.rotary.tables import Arrival, RopeTables, rotated_at

TOGETHER_VALUES = 2**19
"""Most numbers (tokens x heads x head_dim) encoded in one call: beyond it, the cost of a call is negligible anyway."""


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
    """What was measured of each layer of pending chunks, until alpha is fitted to all of them."""

    @cached_property
    def ropes(self) -> Ropes:
        """Checked rotary tables on the pool's device."""
        return Ropes(self.spec.head_dim // 2, self.pool.device)

    def write(self, layer: int, writings: Sequence[Writing], rotation: Rotation) -> None:
        """Stores one layer of pending chunks; small ones of equal length and codecs are encoded in one call.

        Raises NonFiniteError naming layer and heads, StateError when the layer has been written already.
        """
        for writing in writings:
            pending = writing.pending
            if layer in pending.layers_written:
                raise StateError(f"layer {layer} of chunk {pending.chunk.index} was attended twice in one commit pass")
        for batch in self._batches(writings):
            self._write_batch(layer, batch, rotation)
        for writing in writings:
            writing.pending.chunk.ropes[layer] = rotation.rope
            if len(writing.pending.layers_written) == self.spec.num_layers:
                self._fit_alpha(writing.pending)

    def _batches(self, writings: Sequence[Writing]) -> list[list[Writing]]:
        """Neighbours of equal length and codecs, up to TOGETHER_VALUES; larger chunks go alone."""
        batches: list[list[Writing]] = []
        for writing in writings:
            chunk = writing.pending.chunk
            most = TOGETHER_VALUES // (chunk.num_tokens * self.spec.num_kv_heads * self.spec.head_dim)
            first = batches[-1][0].pending.chunk if batches else None
            is_alike = first and (first.num_tokens, first.codecs) == (chunk.num_tokens, chunk.codecs)
            if is_alike and len(batches[-1]) < most:
                batches[-1].append(writing)
            else:
                batches.append([writing])
        return batches

    def _write_batch(self, layer: int, batch: Sequence[Writing], rotation: Rotation) -> None:
        """Stores writings of equal length and codecs."""
        codec, _ = self._codecs(batch[0].pending.chunk, layer)
        keys, values = [], []
        for writing in batch:
            k_HnD, v_HnD = self._arrived(writing, layer, rotation)
            if codec.spec.stores_rotated:  # in float32, whatever the keys arrive in
                k_HnD = rotation.at(k_HnD.float(), writing.pending.chunk.position)
            keys.append(k_HnD)
            values.append(v_HnD)
        records = self._encode_all([writing.pending for writing in batch], "keys", layer, keys)
        self._encode_all([writing.pending for writing in batch], "values", layer, values)
        for writing, exact_HnD, records_HPB in zip(batch, keys, records, strict=True):
            if self._keeps_codec(writing.pending, "keys", layer):
                _copy_correction(writing.pending, layer)
            elif self._is_measured(writing.pending, codec):
                stored = self._stored(writing.pending.chunk, layer, exact_HnD.float(), records_HPB, rotation)
                self._note_correction(writing, layer, stored, rotation)
            writing.pending.layers_written.add(layer)

    def _stored(
        self, chunk: Chunk, layer: int, exact_HnD: Tensor, records_HPB: Tensor, rotation: Rotation
    ) -> StoredKeys:
        codec, _ = self._codecs(chunk, layer)

        def decode() -> Tensor:
            buffer = self._buffer(codec, records_HPB)
            return codec.decode(records_HPB, chunk.num_tokens, buffer)

        def square_step_size(num_tokens: int, first_token: int) -> Tensor | None:
            return codec.mean_square_step_sizes(records_HPB, num_tokens, first_token)

        return self._stored_keys(chunk, codec, exact_HnD, rotation, decode, square_step_size, codec.axes)

    def _stored_keys(
        self,
        chunk: Chunk,
        codec: Codec,
        exact_HnD: Tensor,
        rotation: Rotation,
        decode: Callable[[], Tensor],
        square_step_size: Callable[[int, int], Tensor | None],
        axes: Tensor | None,
    ) -> StoredKeys:
        source = bias_source(self.spec.correction, codec.spec, has_rope=rotation.rope is not None)
        assert source is not None  # nothing is measured of keys that are never corrected
        angles = None if codec.spec.stores_rotated else rotation.angles(chunk.position, chunk.num_tokens)
        return StoredKeys(exact_HnD, source, angles, decode, square_step_size, axes)

    def _is_measured(self, pending: PendingChunk, key_codec: Codec) -> bool:
        """Whether the correction needs something measured of these keys at commit."""
        chunk = pending.chunk
        return key_codec.spec.is_quantized and (chunk.alpha is not None or chunk.variance is not None)

    def _arrived(self, writing: Writing, layer: int, rotation: Rotation) -> tuple[Tensor, Tensor]:
        """Keys (before rotary embedding, in half layout) and values, float32 [H, n, D]."""
        if writing.pending.source is not None:
            return self.read(writing.pending.source, layer, rotation.stored_by)
        k_nHD = writing.arrival.plain(writing.k_nHD)
        return k_nHD.transpose(0, 1).float(), writing.v_nHD.transpose(0, 1).float()

    def _encode_all(
        self, pending: Sequence[PendingChunk], kind: str, layer: int, tensors: Sequence[Tensor]
    ) -> Sequence[Tensor]:
        """Encodes and stores; returns the records [H, P, B] of each chunk."""
        if len(pending) == 1 or any(self._keeps_codec(each, kind, layer) for each in pending):
            return [
                self._copy(each, kind, layer)
                if self._keeps_codec(each, kind, layer)
                else self._write(each, kind, layer, x)
                for each, x in zip(pending, tensors, strict=True)
            ]
        try:
            together = self._codec(pending[0].chunk, kind, layer).encode(torch.cat(list(tensors)))
        except NonFiniteError:  # one by one, so that the error names the chunk at fault
            return [self._write(each, kind, layer, x) for each, x in zip(pending, tensors, strict=True)]
        records = together.chunk(len(pending))
        for each, records_HPB in zip(pending, records, strict=True):
            self.pool.write(each.chunk.table.layer(kind, layer), records_HPB)
        return records

    def read(self, chunk: Chunk, layer: int, rope: RopeTables | None) -> tuple[Tensor, Tensor]:
        """Stored keys (before rotary embedding) and values of one layer of a chunk, float32 [H, n, D].

        `rope`: as at its commit; needed for codecs that store keys after rotary embedding.
        """
        keys, values = (self._read(chunk, kind, layer) for kind in ("keys", "values"))
        if self._codec(chunk, "keys", layer).spec.stores_rotated:
            keys = rotated_at(keys, rope, chunk.position, backwards=True)
        return keys, values

    def quant_error(self, chunk: Chunk, layer: int, *, has_rope: bool) -> QuantError | None:
        """Quant error of the keys of a whole chunk, alpha included; None where nothing is corrected."""
        codec = self._codec(chunk, "keys", layer)
        source = bias_source(self.spec.correction, codec.spec, has_rope=has_rope)
        if source is None:
            return None
        records = self.pool.read(chunk.table.layer("keys", layer))
        return source.quant_error(
            lambda: codec.mean_square_step_sizes(records, chunk.num_tokens),
            None if chunk.variance is None else chunk.variance[layer],
            codec.axes,
            None if chunk.alpha is None else chunk.alpha[layer],
        )

    def _codecs(self, chunk: Chunk, layer: int) -> tuple[Codec, Codec]:
        return self.book.pair(chunk.codecs, layer, slice(0, self.spec.num_kv_heads))

    def _codec(self, chunk: Chunk, kind: str, layer: int) -> Codec:
        return self._codecs(chunk, layer)[kind == "values"]

    def _read(self, chunk: Chunk, kind: str, layer: int) -> Tensor:
        codec = self._codec(chunk, kind, layer)
        records = self.pool.read(chunk.table.layer(kind, layer))
        return codec.decode(records, chunk.num_tokens, self._buffer(codec, records))

    def _buffer(self, codec: Codec, records_HPB: Tensor) -> Tensor:
        num_heads, num_pages, _ = records_HPB.shape
        shape = (num_heads, num_pages * codec.page_tokens, self.spec.head_dim)
        return torch.empty(shape, dtype=torch.float32, device=self.pool.device)

    def _write(self, pending: PendingChunk, kind: str, layer: int, x_HnD: Tensor) -> Tensor:
        """Encodes and stores; returns the records [H, P, B]."""
        chunk = pending.chunk
        codec = self._codec(chunk, kind, layer)
        try:
            records = codec.encode(x_HnD)
        except NonFiniteError as error:
            heads = ", ".join(map(str, error.rows))
            raise NonFiniteError(
                f"{kind} of layer {layer}, KV head {heads}, chunk {chunk.index} cannot be stored as {codec.name}: "
                f"{error}. The commit was rolled back; look for an overflow in the model's forward.",
                error.rows,
            ) from error
        self.pool.write(chunk.table.layer(kind, layer), records)
        return records

    def _keeps_codec(self, pending: PendingChunk, kind: str, layer: int) -> bool:
        """Whether a recoded chunk keeps its codec here; its bytes are then copied, as nothing is quantized twice."""
        source, chunk = pending.source, pending.chunk
        if source is None or source.codecs.of(kind, layer) != chunk.codecs.of(kind, layer):
            return False
        is_rotated = kind == "keys" and self._codec(chunk, kind, layer).spec.stores_rotated
        return not is_rotated or source.position == chunk.position

    def _copy(self, pending: PendingChunk, kind: str, layer: int) -> Tensor:
        """Copies the bytes of the source chunk; returns the records [H, P, B]."""
        assert pending.source is not None
        records = self.pool.read(pending.source.table.layer(kind, layer))
        self.pool.write(pending.chunk.table.layer(kind, layer), records)
        return records

    def _note_correction(self, writing: Writing, layer: int, stored: StoredKeys, rotation: Rotation) -> None:
        pending, readers = writing.pending, writing.readers
        alpha, variance = pending.chunk.alpha, pending.chunk.variance
        if variance is not None:
            variance[layer] = stored.variance_change().to(variance)
        if alpha is None or readers is None:
            return
        kept = None if variance is None else variance[layer].to(stored.exact_HnD)
        here, *projected_here = self._log_masses_here(writing, readers, rotation)
        effects = [rotary_effect(stored, kept, readers, here, self.spec.scale)]
        for queries, log_mass_here in zip(writing.projected, projected_here, strict=True):
            effects.append(projected_effect(stored, kept, queries, log_mass_here, self.spec.scale))
        self._effects.setdefault(pending, {})[layer] = Effect.of_all(effects)

    def _fit_alpha(self, pending: PendingChunk) -> None:
        """Fits all layers at once: one fit per layer would take long compared with a small chunk's other work."""
        effects = self._effects.pop(pending, None)
        if effects is None:
            return
        stored_alpha = pending.chunk.alpha
        assert stored_alpha is not None
        log_odds, shift, b = (torch.stack(parts) for parts in zip(*effects.values(), strict=True))
        alpha = fit_alpha(log_odds, shift, b)
        for layer, alpha_H in zip(effects, alpha.to(stored_alpha.device), strict=True):
            stored_alpha[layer] = alpha_H

    def _log_masses_here(self, writing: Writing, readers: Readers, rotation: Rotation) -> list[Tensor] | list[None]:
        """log Z of the readers over their own chunk, [H, Q] for each view; None where that is the stored chunk."""
        if writing.pending.source is None:
            return [None] * (1 + len(writing.projected))
        k_HnD = writing.arrival.plain(writing.k_nHD).transpose(0, 1).float()
        scale, num_heads = self.spec.scale, len(k_HnD)
        rotary = log_mass(by_kv_head(readers.here_SHD, num_heads), rotation.at(k_HnD, readers.position), scale)
        return [
            rotary,
            *(queries.scores(k_HnD, queries.here_SF44, scale).logsumexp(-1) for queries in writing.projected),
        ]


def _copy_correction(pending: PendingChunk, layer: int) -> None:
    """Copies what the source chunk keeps for the correction of one layer."""
    source, chunk = pending.source, pending.chunk
    assert source is not None
    if chunk.alpha is not None and source.alpha is not None:
        chunk.alpha[layer] = source.alpha[layer]
    if chunk.variance is not None and source.variance is not None:
        chunk.variance[layer] = source.variance[layer]

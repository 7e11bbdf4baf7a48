"""Writes whole layers of chunks to pages in a commit pass.

Codecs get keys before rotary embedding and in half layout, unless they store them rotated. Heads of a layer may be
stored in different codecs: those that share one are written by one call for their keys, or for their values, and
measured together (commit_correction.py).

On a GPU nothing waits for the device before the last layer. Whether all values could be stored is read then, once.

Axes: H KV heads, h of them that share a codec, n tokens, P pages of a head, D head_dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from pagedvid.attention.commit_correction import CommitCorrection, Writing
from pagedvid.attention.layer_pages import LayerPages
from pagedvid.attention.measure import copy_correction
from pagedvid.attention.rotation import Rotation
from pagedvid.cache.chunk import Chunk
from pagedvid.cache.plan import PendingChunk
from pagedvid.codecs.assignment import Heads
from pagedvid.codecs.base import Codec
from pagedvid.codecs.heads import index_among, index_of
from pagedvid.codecs.spec import CodecSpec
from pagedvid.errors import NonFiniteError, StateError
from pagedvid.rotary.checked import Ropes
from pagedvid.rotary.tables import Arrival

TOGETHER_VALUES = 2**19
"""Most numbers (tokens x heads x head_dim) encoded in one call: beyond it, the cost of a call is negligible anyway."""
Flags = tuple[str, int, Heads, Tensor]
"""(kind, layer, heads, uint8 [h, F]), set where values could not be stored."""


@dataclass(frozen=True)
class LayerStore(LayerPages):
    """Whole layers of chunks, in and out of the pool."""

    _flags: WeakKeyDictionary[PendingChunk, list[Flags]] = field(
        default_factory=WeakKeyDictionary, init=False, repr=False
    )
    """What the layers of a pending chunk leave for the end of its commit pass."""

    @cached_property
    def ropes(self) -> Ropes:
        """Checked rotary tables on the pool's device."""
        return Ropes(self.spec.head_dim // 2, self.pool.device)

    @cached_property
    def correction(self) -> CommitCorrection:
        """What is measured of the keys that are stored."""
        return CommitCorrection(self)

    def write(self, layer: int, writings: Sequence[Writing], rotation: Rotation) -> None:
        """Stores one layer of pending chunks; small ones of equal length and codecs are encoded in one call.

        Raises NonFiniteError naming layer and heads (on a GPU in the last layer only), StateError when the layer has
        been written already.
        """
        for writing in writings:
            pending = writing.pending
            if layer in pending.layers_written:
                raise StateError(f"layer {layer} of chunk {pending.chunk.index} was attended twice in one commit pass")
        for batch in self._batches(writings):
            if len(batch) == 1 and self._can_take_as_given(batch[0], layer):
                self._write_as_given(batch[0], layer)
            else:
                self._write_batch(batch, layer, rotation)
        for writing in writings:
            writing.pending.layers_written.add(layer)
            writing.pending.chunk.ropes[layer] = rotation.rope
            if len(writing.pending.layers_written) == self.spec.num_layers:
                self._require_storable(writing.pending)
                self.correction.finish(writing.pending)

    def _batches(self, writings: Sequence[Writing]) -> list[list[Writing]]:
        """Neighbours of equal length and codecs, up to TOGETHER_VALUES; larger chunks, and those that kernels write, go
        alone."""
        batches: list[list[Writing]] = []
        for writing in writings:
            chunk = writing.pending.chunk
            most = TOGETHER_VALUES // (chunk.num_tokens * self.spec.num_kv_heads * self.spec.head_dim)
            first = batches[-1][0].pending.chunk if batches and not self.uses_kernels else None
            is_alike = first and (first.num_tokens, first.codecs) == (chunk.num_tokens, chunk.codecs)
            if is_alike and len(batches[-1]) < most:
                batches[-1].append(writing)
            else:
                batches.append([writing])
        return batches

    def _can_take_as_given(self, writing: Writing, layer: int) -> bool:
        """Whether kernels put all keys in half layout, un-rotate, encode and write them: nothing else needs them."""
        chunk = writing.pending.chunk
        return writing.pending.source is None and all(
            self.access(self.book.codec(spec, "keys", layer, heads)).takes_arrivals
            and not spec.stores_rotated
            and not self.correction.measures(chunk, spec)
            for heads, spec in chunk.codecs.groups("keys", layer, self.every_head)
        )

    def _write_as_given(self, writing: Writing, layer: int) -> None:
        codecs, device = writing.pending.chunk.codecs, self.pool.device
        for heads, _ in codecs.groups("keys", layer, self.every_head):
            k_nhD = writing.k_nHD[:, index_of(heads, device)]
            self._encode([writing.pending], "keys", layer, heads, k_nhD, writing.arrival)
        for heads, _ in codecs.groups("values", layer, self.every_head):
            v_nhD = writing.v_nHD[:, index_of(heads, device)]
            self._encode([writing.pending], "values", layer, heads, v_nhD)

    def _write_batch(self, batch: Sequence[Writing], layer: int, rotation: Rotation) -> None:
        """Stores chunks of equal length and codecs."""
        codecs, pending = batch[0].pending.chunk.codecs, [writing.pending for writing in batch]
        kept = tuple(head for head in self.every_head if codecs.at(layer, head) is not None)
        if not kept:
            return
        keys, values = zip(*(self._exact(writing, layer, kept, rotation) for writing in batch), strict=True)
        for heads, spec in codecs.groups("keys", layer, kept):
            own = index_among(heads, kept, self.pool.device)
            self._write_keys(batch, layer, heads, spec, [k_HnD[own] for k_HnD in keys], rotation)
        for heads, _ in codecs.groups("values", layer, kept):
            own = index_among(heads, kept, self.pool.device)
            self._write(pending, "values", layer, heads, [v_HnD[own] for v_HnD in values])

    def _exact(self, writing: Writing, layer: int, heads: Heads, rotation: Rotation) -> tuple[Tensor, Tensor]:
        """Keys (before rotary embedding, in half layout) and values of some KV heads, float32 [H, n, D]."""
        source = writing.pending.source
        return writing.exact(heads) if source is None else self.read(source, layer, rotation.stored_by, heads)

    def _write_keys(
        self,
        batch: Sequence[Writing],
        layer: int,
        heads: Heads,
        spec: CodecSpec,
        keys: Sequence[Tensor],
        rotation: Rotation,
    ) -> None:
        """Stores and measures the keys, float32 [h, n, D] each, of heads that share a codec."""
        pending = [writing.pending for writing in batch]
        if spec.stores_rotated:
            keys = [rotation.at(k, each.chunk.position) for k, each in zip(keys, pending, strict=True)]
        self._write(pending, "keys", layer, heads, keys)
        for writing, exact_hnD in zip(batch, keys, strict=True):
            if copied := self._copied(writing.pending, "keys", layer, heads):
                copy_correction(writing.pending, layer, copied)
            coded = _without(heads, copied)
            if coded and self.correction.measures(writing.pending.chunk, spec):
                exact_hnD = exact_hnD[index_among(coded, heads, self.pool.device)]
                self.correction.note(writing, layer, coded, exact_hnD, rotation)

    def _write(
        self, pending: Sequence[PendingChunk], kind: str, layer: int, heads: Heads, given: Sequence[Tensor]
    ) -> None:
        """Encodes and writes float32 [h, n, D] of each chunk, all chunks in one call; or copies pages of heads that
        keep their codec."""
        together: dict[Heads, list[tuple[PendingChunk, Tensor]]] = {}
        for each, x_hnD in zip(pending, given, strict=True):
            if copied := self._copied(each, kind, layer, heads):
                self._copy(each, kind, layer, copied)
            if coded := _without(heads, copied):
                together.setdefault(coded, []).append((each, x_hnD[index_among(coded, heads, self.pool.device)]))
        for coded, chunks in together.items():
            encoded, parts = zip(*chunks, strict=True)
            x_hnD = parts[0] if len(parts) == 1 else torch.cat(parts)
            self._encode(encoded, kind, layer, coded, x_hnD.transpose(0, 1))

    def _encode(
        self,
        pending: Sequence[PendingChunk],
        kind: str,
        layer: int,
        heads: Heads,
        x_nhD: Tensor,
        arrival: Arrival | None = None,
    ) -> None:
        """Encodes and writes chunks of equal length and codecs; `x_nhD` has the heads of one chunk after the other."""
        codec = self.codec(pending[0].chunk, kind, layer, heads)
        pages = [self.pages(each.chunk, kind, layer, heads) for each in pending]
        pages_hP = pages[0] if len(pages) == 1 else torch.cat(pages)
        try:
            flags = self.access(codec).encode(x_nhD, self.pool.records, pages_hP, arrival)
        except NonFiniteError as error:
            number, rows = error.rows[0] // len(heads), error.rows
            bad = tuple(heads[row % len(heads)] for row in rows if row // len(heads) == number)
            raise _not_storable(pending[number].chunk, kind, layer, bad, codec, f": {error}") from error
        if flags is not None:
            self._flags.setdefault(pending[0], []).append((kind, layer, heads, flags))

    def _copied(self, pending: PendingChunk, kind: str, layer: int, heads: Heads) -> Heads:
        """Which of some heads that share a codec had it before, in a chunk that is stored again: their bytes are
        copied, as nothing is quantized twice."""
        source, chunk = pending.source, pending.chunk
        if source is None:
            return ()
        spec = self.codec(chunk, kind, layer, heads).spec
        if kind == "keys" and spec.stores_rotated and source.position != chunk.position:
            return ()
        before = {before: group for group, before in source.codecs.groups(kind, layer, heads)}
        return before.get(spec, ())

    def _copy(self, pending: PendingChunk, kind: str, layer: int, heads: Heads) -> None:
        """Copies the bytes of the source chunk."""
        assert pending.source is not None
        source, target = (self.pages(chunk, kind, layer, heads).flatten() for chunk in (pending.source, pending.chunk))
        self.pool.records.index_copy_(0, target.long(), self.pool.records.index_select(0, source))

    def _require_storable(self, pending: PendingChunk) -> None:
        """Raises NonFiniteError for the first values of a chunk that could not be stored."""
        flags = self._flags.pop(pending, [])
        by_head = [flag.bool().any(1) for *_, flag in flags]
        if not flags or not bool(torch.cat(by_head).any()):  # waits for the device
            return
        for (kind, layer, heads, _), bad in zip(flags, by_head, strict=True):
            rows: list[Any] = torch.nonzero(bad).flatten().tolist()
            if rows:
                named, codec = tuple(heads[row] for row in rows), self.codec(pending.chunk, kind, layer, heads)
                why = ": values are NaN, infinite or too large"
                raise _not_storable(pending.chunk, kind, layer, named, codec, why)


def _without(heads: Heads, others: Heads) -> Heads:
    """The heads that are not among others."""
    return tuple(head for head in heads if head not in others) if others else heads


def _not_storable(chunk: Chunk, kind: str, layer: int, heads: Heads, codec: Codec, why: str) -> NonFiniteError:
    return NonFiniteError(
        f"{kind} of layer {layer}, KV head {', '.join(map(str, heads))}, chunk {chunk.index} cannot be stored as "
        f"{codec.name}{why}. The commit was rolled back; look for an overflow in the model's forward.",
        heads,
    )

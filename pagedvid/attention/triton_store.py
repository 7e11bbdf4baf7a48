"""Writes layers to pages by kernels, without waiting for the device before the last layer of a commit pass.

Where a codec's kernel takes keys as the model gave them, and nothing is measured of them, one pass puts them in half
layout, un-rotates, quantizes, packs and writes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from typing_extensions import override

from pagedvid.attention.measure import StoredKeys
from pagedvid.attention.rotation import Rotation
from pagedvid.attention.store import LayerStore, Writing
from pagedvid.cache.chunk import Chunk
from pagedvid.cache.plan import PendingChunk
from pagedvid.codecs.base import PageKernels
from pagedvid.errors import NonFiniteError
from pagedvid.rotary.kernels import rotated, rows_contiguous
from pagedvid.rotary.tables import Arrival

Flags = list[tuple[str, int, Tensor]]
"""(kind, layer, flags [H, F], set where values could not be stored)."""


@dataclass(frozen=True)
class TritonStore(LayerStore):
    """A `LayerStore` that encodes and decodes by kernels."""

    _flags: WeakKeyDictionary[PendingChunk, Flags] = field(default_factory=WeakKeyDictionary)

    @override
    def write(self, layer: int, writings: Sequence[Writing], rotation: Rotation) -> None:
        # Only the last layer raises NonFiniteError: the flags are read once.
        super().write(layer, writings, rotation)
        for writing in writings:
            if len(writing.pending.layers_written) == self.spec.num_layers:
                self._require_storable(writing.pending.chunk, self._flags.pop(writing.pending))

    @override
    def _write_batch(self, layer: int, batch: Sequence[Writing], rotation: Rotation) -> None:
        for given in batch:
            writing = replace(given, k_nHD=rows_contiguous(given.k_nHD), v_nHD=rows_contiguous(given.v_nHD))
            if self._can_take_as_given(writing, layer):
                self._encode(writing.pending, "keys", layer, writing.k_nHD, writing.arrival)
                self._encode(writing.pending, "values", layer, writing.v_nHD)
                writing.pending.layers_written.add(layer)
            else:
                super()._write_batch(layer, [writing], rotation)

    def _can_take_as_given(self, writing: Writing, layer: int) -> bool:
        codec = self._codec(writing.pending.chunk, "keys", layer)
        takes = self.book.kernels(codec, self.pool.device).takes_arrivals and not codec.spec.stores_rotated
        return takes and writing.pending.source is None and not self._is_measured(writing.pending, codec)

    @override
    def _arrived(self, writing: Writing, layer: int, rotation: Rotation) -> tuple[Tensor, Tensor]:
        if writing.pending.source is not None:
            return super()._arrived(writing, layer, rotation)
        k_nHD, arrival = writing.k_nHD, writing.arrival
        if arrival.rotated_by is not None:
            cos, sin = arrival.rotated_by
            k_nHD = rotated(k_nHD, arrival.layout, (cos, -sin), out=torch.empty_like(k_nHD, dtype=torch.float32))
        elif arrival.layout != "half":
            k_nHD = rotated(k_nHD, arrival.layout, None)
        return k_nHD.transpose(0, 1), writing.v_nHD.transpose(0, 1)

    @override
    def _write(self, pending: PendingChunk, kind: str, layer: int, x_HnD: Tensor) -> Tensor:
        self._encode(pending, kind, layer, x_HnD.transpose(0, 1))
        return self.pool.records[:0]  # not needed: `_stored` reads the pool

    @override
    def _copy(self, pending: PendingChunk, kind: str, layer: int) -> Tensor:
        assert pending.source is not None
        source, target = (self._pages(chunk, kind, layer).flatten() for chunk in (pending.source, pending.chunk))
        self.pool.records.index_copy_(0, target.long(), self.pool.records.index_select(0, source))
        return self.pool.records[:0]

    def _encode(
        self, pending: PendingChunk, kind: str, layer: int, x_nHD: Tensor, arrival: Arrival | None = None
    ) -> None:
        kernels, pages_HP = self._kernels(pending.chunk, kind, layer), self._pages(pending.chunk, kind, layer)
        flags = kernels.encode(x_nHD, self.pool.records, pages_HP, arrival)
        self._flags.setdefault(pending, []).append((kind, layer, flags))

    @override
    def _read(self, chunk: Chunk, kind: str, layer: int) -> Tensor:
        shape = (chunk.num_tokens, self.spec.num_kv_heads, self.spec.head_dim)
        x_nHD = torch.empty(shape, dtype=torch.float32, device=self.pool.device)
        self._kernels(chunk, kind, layer).decode(self.pool.records, self._pages(chunk, kind, layer), x_nHD)
        return x_nHD.transpose(0, 1)

    @override
    def _stored(
        self, chunk: Chunk, layer: int, exact_HnD: Tensor, records_HPB: Tensor, rotation: Rotation
    ) -> StoredKeys:
        kernels, pages_HP = self._kernels(chunk, "keys", layer), self._pages(chunk, "keys", layer)

        def square_step_size(num_tokens: int, first_token: int) -> Tensor | None:
            tokens = slice(first_token, first_token + num_tokens)
            return kernels.mean_square_step_sizes(self.pool.records, pages_HP, tokens)

        codec = self._codec(chunk, "keys", layer)
        decode = partial(self._read, chunk, "keys", layer)
        return self._stored_keys(chunk, codec, exact_HnD, rotation, decode, square_step_size, kernels.axes)

    def _pages(self, chunk: Chunk, kind: str, layer: int) -> Tensor:
        return chunk.table.layer_on(self.pool.device, kind, layer)

    def _kernels(self, chunk: Chunk, kind: str, layer: int) -> PageKernels:
        return self.book.kernels(self._codec(chunk, kind, layer), self.pool.device)

    def _require_storable(self, chunk: Chunk, flags: Flags) -> None:
        by_head = [flag.bool().any(1) for _, _, flag in flags]
        if not bool(torch.stack(by_head).any()):  # the only wait for the device in a commit pass
            return
        for (kind, layer, _), bad in zip(flags, by_head, strict=True):
            heads: list[Any] = torch.nonzero(bad).flatten().tolist()
            if heads:
                raise NonFiniteError(
                    f"{kind} of layer {layer}, KV head {', '.join(map(str, heads))}, chunk {chunk.index} cannot be "
                    f"stored as {chunk.codecs.of(kind, layer)}: values are NaN, infinite or too large. "
                    "The commit was rolled back; look for an overflow in the model's forward.",
                    tuple(heads),
                )

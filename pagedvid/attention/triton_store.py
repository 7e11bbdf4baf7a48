"""Layers written to pages by kernels, with no look at the device until the last layer of a commit pass.

Keys of channel codes and raw pages that nothing is measured of are read as the model gave them: their channels put in
order, turned back, reduced, rounded, packed and written in one pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from pagedvid.attention.measure import StoredKeys
from pagedvid.attention.page_kernels import ChannelKernels, KernelBook, PageKernels
from pagedvid.attention.store import LayerStore, Writing
from pagedvid.cache.chunk import Chunk
from pagedvid.cache.plan import PendingChunk
from pagedvid.codecs.assignment import KINDS
from pagedvid.errors import NonFiniteError
from pagedvid.rotary.kernels import rows_contiguous, turned
from pagedvid.rotary.tables import RopeTables

Flags = list[tuple[str, int, Tensor]]
"""(kind, layer, flags [H, F] of what could not be stored)."""


@dataclass(frozen=True)
class PooledKeys(StoredKeys):
    """Keys that kernels decode where they lie."""

    kernels: PageKernels
    records: Tensor
    """The pool."""
    pages_HP: Tensor

    def decoded(self) -> Tensor:
        """See `StoredKeys`."""
        keys_nHD = torch.empty_like(self.exact_HnD.transpose(0, 1), memory_format=torch.contiguous_format)
        self.kernels.decode(self.records, self.pages_HP, keys_nHD, None, 0)
        return keys_nHD.transpose(0, 1)

    def step_square(self, num_tokens: int, first_token: int) -> Tensor | None:
        """See `StoredKeys`."""
        return self.kernels.step_square(self.records, self.pages_HP, slice(first_token, first_token + num_tokens))

    @property
    def axes(self) -> Tensor | None:
        """See `StoredKeys`."""
        return self.kernels.axes


@dataclass(frozen=True)
class TritonStore(LayerStore):
    """See the module docstring, and `LayerStore`."""

    kernels: KernelBook
    _page_ids: WeakKeyDictionary[Chunk | PendingChunk, Tensor] = field(default_factory=WeakKeyDictionary)
    """Page ids on the device, copied there once."""
    _flags: WeakKeyDictionary[PendingChunk, Flags] = field(default_factory=WeakKeyDictionary)

    def write(self, layer: int, writings: Sequence[Writing], rope: RopeTables | None) -> None:
        """See `LayerStore.write`. NonFiniteError comes with the last layer."""
        super().write(layer, writings, rope)
        for writing in writings:
            if len(writing.pending.layers_written) == self.spec.num_layers:
                self._require_storable(writing.pending, self._flags.pop(writing.pending))

    def _write_batch(self, layer: int, batch: Sequence[Writing], rope: RopeTables | None) -> None:
        for given in batch:
            writing = replace(given, k_nHD=rows_contiguous(given.k_nHD), v_nHD=rows_contiguous(given.v_nHD))
            name = writing.pending.codecs.of("keys", layer)
            kernels = self._kernels(name, "keys", layer)
            if isinstance(kernels, ChannelKernels) and self._can_take_as_given(writing, name, kernels):
                self._store(writing.pending, "keys", layer, kernels.encode_given, writing.k_nHD, writing.arrival)
                self._write(writing.pending, "values", layer, writing.v_nHD.transpose(0, 1))
                writing.pending.layers_written.add(layer)
            else:
                super()._write_batch(layer, [writing], rope)

    def _can_take_as_given(self, writing: Writing, name: str, kernels: ChannelKernels) -> bool:
        is_measured = self._is_measured(writing.pending, name)
        return writing.pending.source is None and not is_measured and not kernels.layout.stores_rotated

    def _arrived(self, writing: Writing, layer: int, rope: RopeTables | None) -> tuple[Tensor, Tensor]:
        """See `LayerStore._arrived`; what need not be turned back stays as it is."""
        if writing.pending.source is not None:
            return super()._arrived(writing, layer, rope)
        k_nHD, arrival = writing.k_nHD, writing.arrival
        if arrival.turned_by is not None:
            cos, sin = arrival.turned_by
            k_nHD = turned(k_nHD, arrival.layout, (cos, -sin), out=torch.empty_like(k_nHD, dtype=torch.float32))
        elif arrival.layout != "half":
            k_nHD = turned(k_nHD, arrival.layout, None)
        return k_nHD.transpose(0, 1), writing.v_nHD.transpose(0, 1)

    def _write(self, pending: PendingChunk, kind: str, layer: int, x_HnD: Tensor) -> Tensor:
        kernels = self._kernels(pending.codecs.of(kind, layer), kind, layer)
        self._store(pending, kind, layer, kernels.encode, x_HnD.transpose(0, 1))
        return self.pool.records[:0]  # what is measured of them reads the pool: `_stored`

    def _copy(self, pending: PendingChunk, kind: str, layer: int) -> Tensor:
        """See `LayerStore._copy`; page ids are on the device already."""
        assert pending.source is not None
        source, target = (self._pages_on_device(chunk, kind, layer).flatten() for chunk in (pending.source, pending))
        self.pool.records.index_copy_(0, target.long(), self.pool.records.index_select(0, source))
        return self.pool.records[:0]

    def _store(
        self, pending: PendingChunk, kind: str, layer: int, encode: Callable[..., Tensor], x_nHD: Tensor, *how: Any
    ) -> None:
        flags = encode(x_nHD, self.pool.records, self._pages_on_device(pending, kind, layer), *how)
        self._flags.setdefault(pending, []).append((kind, layer, flags))

    def _read(self, chunk: Chunk, kind: str, layer: int) -> Tensor:
        shape = (chunk.num_tokens, self.spec.num_kv_heads, self.spec.head_dim)
        x_nHD = torch.empty(shape, dtype=torch.float32, device=self.pool.device)
        kernels = self._kernels(chunk.codecs.of(kind, layer), kind, layer)
        kernels.decode(self.pool.records, self._pages_on_device(chunk, kind, layer), x_nHD, None, 0)
        return x_nHD.transpose(0, 1)

    def _pages_on_device(self, chunk: Chunk | PendingChunk, kind: str, layer: int) -> Tensor:
        """int32 [H, P]."""
        if chunk not in self._page_ids:
            self._page_ids[chunk] = torch.from_numpy(chunk.pages).to(self.pool.device)
        table = (KINDS.index(kind) * self.spec.num_layers + layer) * self.spec.num_kv_heads
        first, last = (int(chunk.indptr[table + number]) for number in (0, self.spec.num_kv_heads))
        return self._page_ids[chunk][first:last].view(self.spec.num_kv_heads, -1)

    def _stored(
        self, pending: PendingChunk, layer: int, exact_HnD: Tensor, records_HPB: Tensor, rope: RopeTables | None
    ) -> StoredKeys:
        codec = self._codec(pending.codecs.of("keys", layer), "keys", layer)
        pages_HP = self._pages_on_device(pending, "keys", layer)
        where = (self.kernels.of(codec), self.pool.records, pages_HP)
        return PooledKeys(exact_HnD, codec, rope, pending.position, *where)

    def _kernels(self, name: str, kind: str, layer: int) -> PageKernels:
        return self.kernels.of(self._codec(name, kind, layer))

    def _require_storable(self, pending: PendingChunk, flags: Flags) -> None:
        by_head = [flag.bool().any(1) for _, _, flag in flags]
        if not bool(torch.stack(by_head).any()):  # the one look at the device of a commit pass
            return
        for (kind, layer, _), bad in zip(flags, by_head, strict=True):
            heads: list[Any] = torch.nonzero(bad).flatten().tolist()
            if heads:
                raise NonFiniteError(
                    f"{kind} of layer {layer}, KV head {', '.join(map(str, heads))}, chunk {pending.index} cannot be "
                    f"stored as {pending.codecs.of(kind, layer)}: values are NaN, infinite or too large. "
                    "The commit was rolled back; look for an overflow in the model's forward.",
                    tuple(heads),
                )

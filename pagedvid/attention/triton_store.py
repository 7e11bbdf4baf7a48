"""Layers written to pages by kernels: one pass over keys and values, and no look at the device until the last layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pagedvid.attention.commit import LayerStore, Writing
from pagedvid.attention.kernels import encode
from pagedvid.attention.kernels.layout import layout_of
from pagedvid.cache.plan import PendingChunk
from pagedvid.chunk_codecs import KINDS
from pagedvid.errors import NonFiniteError
from pagedvid.page_format import is_quantized
from pagedvid.quant.rotary import RopeTables


@dataclass
class _Writing:
    """What is remembered of a chunk between its layers."""

    pages: Tensor
    """Its page ids on the device."""
    flags: list[tuple[str, int, Tensor]] = field(default_factory=list)
    """(kind, layer, flags [H, F] of what could not be stored)."""


@dataclass(frozen=True)
class TritonStore(LayerStore):
    """See `LayerStore`. Codecs that kernels do not write go through their own `encode`."""

    _writing: dict[int, _Writing] = field(default_factory=dict)

    def write(self, layer: int, writings: Sequence[Writing], rope: RopeTables | None) -> None:
        """See `LayerStore.write`. NonFiniteError comes with the last layer."""
        for writing in writings:
            pending = writing.pending
            if not pending.layers_written:
                self._writing[id(pending)] = _Writing(torch.from_numpy(pending.pages).to(self.pool.device))
        super().write(layer, writings, rope)
        for writing in writings:
            if len(writing.pending.layers_written) == self.spec.num_layers:
                self._require_storable(writing.pending, self._writing.pop(id(writing.pending)).flags)

    def _encode_all(
        self, pending: Sequence[PendingChunk], kind: str, layer: int, tensors: Sequence[Tensor]
    ) -> Sequence[Tensor]:
        return [self._write(chunk, kind, layer, x) for chunk, x in zip(pending, tensors, strict=True)]

    def _write(self, pending: PendingChunk, kind: str, layer: int, x_HnD: Tensor) -> Tensor:
        name = pending.codecs.of(kind, layer)
        pages = layout_of(self.book.page, self._codec(name, kind, layer))
        if pages is None or encode.unsupported_reasons(pages):
            return super()._write(pending, kind, layer, x_HnD)
        writing = self._writing[id(pending)]
        table = (KINDS.index(kind) * self.spec.num_layers + layer) * self.spec.num_kv_heads
        first, last = (int(pending.indptr[table + number]) for number in (0, self.spec.num_kv_heads))
        pages_HP = writing.pages[first:last].view(self.spec.num_kv_heads, -1)
        flags = encode.encode(x_HnD.transpose(0, 1), self.pool.records, pages, pages_HP)
        writing.flags.append((kind, layer, flags))
        needs_records = kind == "keys" and is_quantized(name)  # for what the correction takes at commit
        return self.pool.records[pages_HP.long()] if needs_records else self.pool.records[:0]

    def _require_storable(self, pending: PendingChunk, flags: Sequence[tuple[str, int, Tensor]]) -> None:
        by_head = [flag.bool().any(1) for _, _, flag in flags]
        if not by_head or not bool(torch.stack(by_head).any()):  # the one look at the device of a commit pass
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

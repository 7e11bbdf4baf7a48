"""Whole layers of chunks as they are stored: reads them back, however many codecs their heads have.

Axes: H KV heads, n tokens, P pages of a head, D head_dim.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from pagedvid.cache.chunk import Chunk
from pagedvid.cache.pool import PagePool
from pagedvid.cache.spec import CacheSpec
from pagedvid.codecs.assignment import Heads
from pagedvid.codecs.base import Codec, PageKernels
from pagedvid.codecs.book import CodecBook
from pagedvid.codecs.heads import index_among
from pagedvid.errors import StateError
from pagedvid.rotary.tables import RopeTables, rotated_at


@dataclass(frozen=True)
class LayerPages:
    """Reads whole layers of chunks."""

    pool: PagePool
    spec: CacheSpec
    book: CodecBook
    uses_kernels: bool
    """Whether pages are read and written by their codecs' kernels, or by PyTorch operations."""

    def read(
        self, chunk: Chunk, layer: int, rope: RopeTables | None, heads: Heads | None = None
    ) -> tuple[Tensor, Tensor]:
        """Stored keys (before rotary embedding) and values of one layer of a chunk, float32 [H, n, D].

        `rope`: as at its commit; needed for codecs that store keys after rotary embedding. `heads`: which ones; None:
        all. Raises StateError when any of them keeps nothing of the chunk.
        """
        heads = self.every_head if heads is None else heads
        if missing := [head for head in heads if chunk.codecs.at(layer, head) is None]:
            raise StateError(
                f"KV heads {', '.join(map(str, missing))} of layer {layer} keep nothing of chunk {chunk.index}; read "
                "the other heads alone"
            )
        keys_HnD, values_HnD = (self.decoded(chunk, kind, layer, heads) for kind in ("keys", "values"))
        for group, spec in chunk.codecs.groups("keys", layer, heads):
            if spec.stores_rotated:
                places = index_among(group, heads, self.pool.device)
                keys_HnD[places] = rotated_at(keys_HnD[places], rope, chunk.position, backwards=True)
        return keys_HnD, values_HnD

    def decoded(self, chunk: Chunk, kind: str, layer: int, heads: Heads) -> Tensor:
        """ "keys" or "values" as they are stored, float32 [H, n, D]."""
        groups = chunk.codecs.groups(kind, layer, heads)
        codecs = [self.book.codec(spec, kind, layer, group) for group, spec in groups]
        room_tokens = max(codec.padded_tokens(chunk.num_tokens) for codec in codecs)  # for whole pages: saves a copy
        shape = (1, 1, len(heads), room_tokens, self.spec.head_dim)
        x_11HnD = torch.empty(shape, dtype=torch.float32, device=self.pool.device)
        for (group, _), codec in zip(groups, codecs, strict=True):
            pages_ShP = self.pages(chunk, kind, layer, group).unsqueeze(0)
            places = index_among(group, heads, self.pool.device)
            out_EJnHD = x_11HnD.transpose(2, 3)
            self.access(codec).decode_heads(self.pool.records, pages_ShP, chunk.num_tokens, out_EJnHD, places)
        return x_11HnD[0, 0, :, : chunk.num_tokens]

    @cached_property
    def every_head(self) -> Heads:
        """All KV heads of a layer."""
        return tuple(range(self.spec.num_kv_heads))

    def codec(self, chunk: Chunk, kind: str, layer: int, heads: Heads) -> Codec:
        """The codec that heads of a chunk share."""
        pair = chunk.codecs.at(layer, heads[0])
        assert pair is not None, f"head {heads[0]} of layer {layer} keeps nothing"
        return self.book.codec(pair.of(kind), kind, layer, heads)

    def access(self, codec: Codec) -> PageKernels:
        """How the codec's pages are read and written."""
        return self.book.access(codec, self.pool.device, self.uses_kernels)

    def pages(self, chunk: Chunk, kind: str, layer: int, heads: Heads) -> Tensor:
        """The pages of heads that share a codec, int32 [H, P]."""
        return chunk.table.layer_on(self.pool.device, kind, layer, heads)

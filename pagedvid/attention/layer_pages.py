"""Whole layers of chunks as they are stored: reads them back, however many codecs their heads have.

Axes: H KV heads, n tokens, P pages of a head, D head_dim.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from pagedvid.attention.tiles import Decoding
from pagedvid.cache.chunk import Chunk
from pagedvid.cache.pool import PagePool
from pagedvid.cache.spec import CacheSpec
from pagedvid.codecs.assignment import Heads
from pagedvid.codecs.base import Codec, PageKernels
from pagedvid.codecs.book import CodecBook
from pagedvid.codecs.heads import index_of, places_among
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
                places = index_of(places_among(group, heads), keys_HnD.device)
                keys_HnD[places] = rotated_at(keys_HnD[places], rope, chunk.position, backwards=True)
        return keys_HnD, values_HnD

    def decoded(self, chunk: Chunk, kind: str, layer: int, heads: Heads) -> Tensor:
        """ "keys" or "values" as they are stored, float32 [H, n, D]."""
        groups = chunk.codecs.groups(kind, layer, heads)
        # Room for whole pages saves a copy.
        room_tokens = max(spec.padded_tokens(self.spec.shape.page, chunk.num_tokens) for _, spec in groups)
        shape = (1, 1, len(heads), room_tokens, self.spec.head_dim)
        x_HnD = torch.empty(shape, dtype=torch.float32, device=self.pool.device)
        for group, _ in groups:
            access = self.access(self.codec(chunk, kind, layer, group))
            pages_ShP = self.pages(chunk, kind, layer, group).unsqueeze(0)
            decoding = Decoding(places_among(group, heads), access, pages_ShP)
            decoding.into(x_HnD.transpose(2, 3), self.pool.records, chunk.num_tokens)
        return x_HnD[0, 0, :, : chunk.num_tokens]

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

"""Chunks, the unit of commit and eviction."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pagedvid.cache.pool import PageIds, PagePool, PageTable
from pagedvid.cache.sizes import KVShape
from pagedvid.codecs.assignment import ChunkCodecs

NO_PAGES = PageTable(np.empty(0, dtype=np.int32), np.zeros(1, dtype=np.int64), 1)


@dataclass(frozen=True, eq=False)
class Chunk:
    """A chunk that is committed, or about to be (`PendingChunk`). Once it is committed, neither it nor any byte of its
    pages ever changes; where heads let go of it, another `Chunk` with the same id takes its place."""

    index: int
    """Its index in the video, from 0."""
    first_token: int
    """Number of tokens before it in the video."""
    position: int
    """Rotary position of its first token when it was committed."""
    num_tokens: int
    codecs: ChunkCodecs
    tag: Any = field(default=None, repr=False)
    """What the model attached when it was committed (`QueryRange.tag`), such as the cameras of its frames."""
    id: int = -1
    """Assigned when its pages are taken; no other chunk of its cache ever has it."""
    table: PageTable = field(default=NO_PAGES, repr=False)
    alpha: Tensor | None = field(default=None, repr=False)
    """Measured correction factors, float32 [num_layers, num_kv_heads]; None when nothing was measured."""
    variance: Tensor | None = field(default=None, repr=False)
    """Var k' - Var k by channel, bfloat16 [num_layers, num_kv_heads, head_dim]; None when the correction needs none."""
    ropes: dict[int, Any] = field(default_factory=dict, repr=False)
    """By layer, the rotary tables that its keys were committed with, or None."""
    runs: dict[int, tuple[int, ...]] = field(default_factory=dict, repr=False)
    """By layer, the tokens of each run of pages with about the same b, where the correction's unit is the page."""
    digests: tuple[bytes, ...] | None = field(default=None, repr=False)
    """Hash of the page bytes of every table that was stored, kept only with `CacheSpec.debug_checks`."""

    @property
    def num_pages(self) -> int:
        """Number of its pages."""
        return len(self.table.ids)

    def with_pages(self, chunk_id: int, ids: PageIds, shape: KVShape, device: torch.device) -> Chunk:
        """The chunk with an id and the pages `ids`, int32 [num_pages], before anything is written or measured: alpha is
        1 and variance 0, where the correction keeps them."""
        alpha, variance = None, None
        if shape.keeps_alpha(self.codecs):
            alpha = torch.ones(shape.num_layers, shape.num_kv_heads, dtype=torch.float32, device=device)
        if shape.keeps_variance(self.codecs):
            sizes = (shape.num_layers, shape.num_kv_heads, shape.head_dim)
            variance = torch.zeros(sizes, dtype=torch.bfloat16, device=device)
        table = PageTable(ids, shape.table_bounds(self.num_tokens, self.codecs), shape.num_kv_heads)
        return replace(self, id=chunk_id, table=table, alpha=alpha, variance=variance)

    def thinned(self, codecs: ChunkCodecs, shape: KVShape) -> Chunk:
        """The chunk as fewer heads keep it. `codecs`: as before for these heads, and nothing for the others.

        Tables of the others are left out, and so are alpha and variance if no head is left that needs them.
        """
        if codecs == self.codecs:
            return self
        return replace(
            self,
            codecs=codecs,
            table=self.table.within(shape.table_bounds(self.num_tokens, codecs)),
            alpha=self.alpha if shape.keeps_alpha(codecs) else None,
            variance=self.variance if shape.keeps_variance(codecs) else None,
        )


def digest_tables(pool: PagePool, table: PageTable) -> tuple[bytes, ...]:
    """Hash of the page bytes of every entry of a table, 16 bytes each."""
    records = pool.read(table.ids).cpu().numpy()
    bounds = pairwise(table.indptr.tolist())
    return tuple(hashlib.blake2b(records[start:end].tobytes(), digest_size=16).digest() for start, end in bounds)

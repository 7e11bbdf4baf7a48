"""Chunks, the unit of commit, eviction and sharing, and the ledger of references to them."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from pagedvid.cache.pool import PageIds, PagePool, PageTable
from pagedvid.codecs.assignment import ChunkCodecs
from pagedvid.errors import IntegrityError

NO_PAGES = PageTable(np.empty(0, dtype=np.int32), np.zeros(1, dtype=np.int64), 1)


@dataclass(frozen=True, eq=False)
class Chunk:
    """A chunk that is committed, or about to be (`PendingChunk`). Once it is committed, neither it nor any byte of its
    pages ever changes."""

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
    """Assigned when its pages are taken; unique in its cache."""
    table: PageTable = field(default=NO_PAGES, repr=False)
    alpha: Tensor | None = field(default=None, repr=False)
    """Measured correction factors, float32 [num_layers, num_kv_heads]; None when nothing was measured."""
    variance: Tensor | None = field(default=None, repr=False)
    """Var k' - Var k by channel, bfloat16 [num_layers, num_kv_heads, head_dim]; None when the correction needs none."""
    ropes: dict[int, Any] = field(default_factory=dict, repr=False)
    """By layer, the rotary tables that its keys were committed with, or None."""
    runs: dict[int, tuple[int, ...]] = field(default_factory=dict, repr=False)
    """By layer, the tokens of each run of pages with about the same b, where the correction's unit is the page."""
    digest: bytes | None = field(default=None, repr=False)
    """Hash of the page bytes, kept only with `CacheSpec.debug_checks`."""

    @property
    def num_pages(self) -> int:
        """Number of its pages."""
        return len(self.table.ids)


def digest_pages(pool: PagePool, ids: PageIds) -> bytes:
    """Hash of the bytes of some pages."""
    return hashlib.blake2b(pool.read(ids).cpu().numpy().tobytes(), digest_size=16).digest()


class ChunkLedger:
    """Reference counts of live chunks. A chunk's pages return to the pool when its last reference is dropped.

    `permanent` references are those that no sliding window can drop (sinks, pins). Their pages are budgeted once,
    however many streams share them; see cache/manager.py.
    """

    def __init__(self, pool: PagePool) -> None:
        self._pool = pool
        self._chunks: dict[int, Chunk] = {}
        self._references: Counter[int] = Counter()
        self._permanent: Counter[int] = Counter()
        self.permanent_pages = 0
        """Pages of distinct chunks with a permanent reference."""

    def __len__(self) -> int:
        return len(self._chunks)

    def __iter__(self) -> Iterator[Chunk]:
        return iter(self._chunks.values())

    def references(self, chunk: Chunk) -> int:
        """How many branch histories hold the chunk."""
        return self._references[chunk.id]

    def retain(self, chunk: Chunk) -> None:
        """Adds a reference; the first one enters the chunk into the ledger."""
        self._chunks[chunk.id] = chunk
        self._references[chunk.id] += 1

    def drop(self, chunk: Chunk) -> None:
        """Removes a reference; removing the last one frees the pages."""
        if self._references[chunk.id] < 1:
            raise IntegrityError(f"chunk {chunk.id} has no reference left to drop")
        self._references[chunk.id] -= 1
        if self._references[chunk.id] == 0:
            del self._references[chunk.id], self._chunks[chunk.id]
            self._pool.give_back(chunk.table.ids)

    def make_permanent(self, chunk: Chunk) -> None:
        """Adds a permanent reference."""
        self._permanent[chunk.id] += 1
        if self._permanent[chunk.id] == 1:
            self.permanent_pages += chunk.num_pages

    def permanent_references(self, chunk: Chunk) -> int:
        """How many streams hold the chunk permanently."""
        return self._permanent[chunk.id]

    def make_temporary(self, chunk: Chunk) -> None:
        """Removes a permanent reference."""
        self._permanent[chunk.id] -= 1
        if self._permanent[chunk.id] == 0:
            del self._permanent[chunk.id]
            self.permanent_pages -= chunk.num_pages

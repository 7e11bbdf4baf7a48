"""Chunks: the unit of commit, eviction and sharing, and the ledger that counts who refers to them."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pagedvid.cache.pool import PageIds, PagePool
from pagedvid.cache.sizes import KVShape
from pagedvid.codecs.assignment import KINDS, ChunkCodecs
from pagedvid.errors import IntegrityError


@dataclass(frozen=True, eq=False)
class Chunk:
    """A committed chunk; nothing in it, and no byte of its pages, ever changes.

    Page ids are a CSR table over (kind, layer, KV head), keys before values: table t owns
    `pages[indptr[t] : indptr[t + 1]]`, in token order. The tables of one kind and layer are equally long.
    """

    id: int
    index: int
    """Which chunk of its video it is, from 0."""
    first_token: int
    """Tokens of the video before it."""
    position: int
    """Where rotary embedding placed its first token when it was committed."""
    num_tokens: int
    codecs: ChunkCodecs
    pages: PageIds = field(repr=False)
    indptr: NDArray[np.int64] = field(repr=False)
    alpha: Tensor | None = field(default=None, repr=False)
    """Measured correction factors, float32 [num_layers, num_kv_heads]; None when nothing was measured."""
    variance: Tensor | None = field(default=None, repr=False)
    """Var k' - Var k by channel, bfloat16 [num_layers, num_kv_heads, head_dim]; None when the correction needs none."""
    ropes: Mapping[int, Any] = field(default_factory=dict, repr=False)
    """By layer the rotary tables under which its keys were given, or None."""
    tag: Any = field(default=None, repr=False)
    """What the model said about its tokens when it was committed (`QueryRange.tag`), such as their cameras."""
    digest: bytes | None = field(default=None, repr=False)
    """Hash of the page bytes, kept only with `CacheSpec.debug_checks`."""

    @property
    def num_pages(self) -> int:
        """Pages of all tables."""
        return len(self.pages)

    def layer_pages(self, kind: str, layer: int, num_kv_heads: int) -> PageIds:
        """Page ids of the "keys" or "values" of one layer, int32 [num_kv_heads, pages per head]."""
        return layer_pages(self.pages, self.indptr, kind, layer, num_kv_heads)


def layer_pages(pages: PageIds, indptr: NDArray[np.int64], kind: str, layer: int, num_kv_heads: int) -> PageIds:
    """See `Chunk.layer_pages`."""
    num_layers = (len(indptr) - 1) // (len(KINDS) * num_kv_heads)
    first = (KINDS.index(kind) * num_layers + layer) * num_kv_heads
    return pages[indptr[first] : indptr[first + num_kv_heads]].reshape(num_kv_heads, -1)


def page_tables(shape: KVShape, num_tokens: int, codecs: ChunkCodecs) -> NDArray[np.int64]:
    """CSR offsets of a chunk's tables."""
    return np.cumsum((0, *shape.table_pages(num_tokens, codecs)), dtype=np.int64)


def digest_pages(pool: PagePool, pages: PageIds) -> bytes:
    """Hash of the bytes of some pages."""
    return hashlib.blake2b(pool.read(pages).cpu().numpy().tobytes(), digest_size=16).digest()


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
        """One more reference; the first one brings the chunk into the ledger."""
        self._chunks[chunk.id] = chunk
        self._references[chunk.id] += 1

    def drop(self, chunk: Chunk) -> None:
        """One reference less; the last one frees the pages."""
        if self._references[chunk.id] < 1:
            raise IntegrityError(f"chunk {chunk.id} has no reference left to drop")
        self._references[chunk.id] -= 1
        if self._references[chunk.id] == 0:
            del self._references[chunk.id], self._chunks[chunk.id]
            self._pool.give_back(chunk.pages)

    def make_permanent(self, chunk: Chunk) -> None:
        """One more permanent reference."""
        self._permanent[chunk.id] += 1
        if self._permanent[chunk.id] == 1:
            self.permanent_pages += chunk.num_pages

    def permanent_references(self, chunk: Chunk) -> int:
        """How many streams hold the chunk for good."""
        return self._permanent[chunk.id]

    def make_temporary(self, chunk: Chunk) -> None:
        """One permanent reference less."""
        self._permanent[chunk.id] -= 1
        if self._permanent[chunk.id] == 0:
            del self._permanent[chunk.id]
            self.permanent_pages -= chunk.num_pages

"""Reference counts of the tables of chunks. A table holds the keys or the values of one layer and KV head.

Streams share chunks, and a stream may drop a chunk for some heads earlier than for others, as their windows move on. So
references are counted for each table rather than for each chunk. When the last one is dropped, the table's pages return
to the pool.

                             chunk 7   layer 0, head 0   layer 0, head 1   layer 0, head 2
    stream 0, where it is the newest         x                 x                 x
    its fork, two commits later              x                                   x
    references                               2                 1                 2
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pagedvid.cache.chunk import Chunk
from pagedvid.cache.pool import PagePool
from pagedvid.errors import IntegrityError

Counts = NDArray[np.int64]
"""One number for each entry of a page table."""


class _TableCounts:
    """Number of references to every table, by chunk id. A chunk without any reference has no entry."""

    def __init__(self) -> None:
        self.by_chunk: dict[int, Counts] = {}

    def of(self, chunk: Chunk) -> Counts:
        """Number of references to every table that the chunk can have, int64 [tables]."""
        return self.by_chunk.get(chunk.id, np.zeros(len(chunk.table.indptr) - 1, dtype=np.int64))

    def add(self, chunk: Chunk) -> NDArray[np.bool_]:
        """Counts the chunk's tables once more. Returns those that were not held before."""
        tables, before = chunk.table.is_filled, self.of(chunk)
        self._set(chunk, before + tables)
        return tables & (before == 0)

    def remove(self, chunk: Chunk) -> NDArray[np.bool_]:
        """Counts the chunk's tables once less. Returns those that are held no longer."""
        tables, before = chunk.table.is_filled, self.of(chunk)
        if (before < tables).any():
            raise IntegrityError(f"a table of chunk {chunk.id} has no reference left to drop")
        self._set(chunk, before - tables)
        return tables & (before == 1)

    def _set(self, chunk: Chunk, counts: Counts) -> None:
        if counts.any():
            self.by_chunk[chunk.id] = counts
        else:
            self.by_chunk.pop(chunk.id, None)


class ChunkLedger:
    """Reference counts of the tables of live chunks.

    `permanent` references are those that no sliding window can drop (sinks, pins). Their pages are budgeted once,
    however many streams share them; see cache/budget.py.
    """

    def __init__(self, pool: PagePool) -> None:
        self._pool = pool
        self._references = _TableCounts()
        self._permanent = _TableCounts()
        self.permanent_pages = 0
        """Pages of distinct tables with a permanent reference."""

    def references(self, chunk: Chunk) -> Counts:
        """How many branch histories hold each table of the chunk, int64 [tables]."""
        return self._references.of(chunk)

    @property
    def all_references(self) -> dict[int, Counts]:
        """`references` of all chunks, by chunk id."""
        return self._references.by_chunk

    @property
    def all_permanent(self) -> dict[int, Counts]:
        """Permanent references to each table, by chunk id."""
        return self._permanent.by_chunk

    def retain(self, chunk: Chunk) -> None:
        """Adds a reference to every table that the chunk has."""
        self._references.add(chunk)

    def drop(self, chunk: Chunk) -> None:
        """Removes a reference to every table that the chunk has, and frees the pages of those that have none left.

        Raises IntegrityError when there is none to remove.
        """
        self._pool.give_back(chunk.table.ids_of(self._references.remove(chunk)))

    def make_permanent(self, chunk: Chunk) -> None:
        """Adds a permanent reference to every table that the chunk has; a table's pages count from its first one on."""
        self.permanent_pages += len(chunk.table.ids_of(self._permanent.add(chunk)))

    def make_temporary(self, chunk: Chunk) -> None:
        """Removes a permanent reference to every table that the chunk has. Raises IntegrityError when there is none."""
        self.permanent_pages -= len(chunk.table.ids_of(self._permanent.remove(chunk)))

    def permanent_pages_of(self, chunk: Chunk, min_streams: int = 1) -> int:
        """Pages of the chunk's tables that have at least `min_streams` permanent references."""
        return len(chunk.table.ids_of(chunk.table.is_filled & (self._permanent.of(chunk) >= min_streams)))

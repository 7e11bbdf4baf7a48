"""`check`: recomputes from scratch everything that the manager counts. Slow and simple on purpose."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from pagedvid.cache.chunk import Chunk, ChunkLedger, digest_pages
from pagedvid.cache.plan import PendingChunk
from pagedvid.cache.pool import PagePool
from pagedvid.cache.sizes import KVShape
from pagedvid.cache.stream import Stream
from pagedvid.errors import IntegrityError


def check_integrity(
    shape: KVShape,
    pool: PagePool,
    ledger: ChunkLedger,
    streams: Sequence[Stream],
    pending: Sequence[PendingChunk],
    budget_pages: int,
) -> None:
    """Raises IntegrityError for the first invariant (I1 to I6, see manager.py) that does not hold."""
    _check_pages(pool, ledger, pending)
    _check_tables(shape, [*ledger, *(each.chunk for each in pending)])
    _check_references(ledger, streams)
    _check_budget(pool, streams, budget_pages)
    _check_digests(pool, ledger)
    _check_windows(streams)


def _check_pages(pool: PagePool, ledger: ChunkLedger, pending: Sequence[PendingChunk]) -> None:
    owned = [pool.free_ids, *(chunk.table.ids for chunk in ledger), *(each.chunk.table.ids for each in pending)]
    counts = np.bincount(np.concatenate(owned), minlength=pool.num_pages)
    _require(
        len(counts) == pool.num_pages and bool((counts == 1).all()), "I1: a page is lost, or in two places at once"
    )


def _check_tables(shape: KVShape, chunks: Sequence[Chunk]) -> None:
    for chunk in chunks:
        bounds = shape.table_bounds(chunk.num_tokens, chunk.codecs)
        _require(
            np.array_equal(chunk.table.indptr, bounds) and len(chunk.table.ids) == bounds[-1],
            f"I1: chunk {chunk.id} does not have the pages that its codecs want",
        )


def _check_references(ledger: ChunkLedger, streams: Sequence[Stream]) -> None:
    held = Counter(chunk.id for stream in streams for chunk in stream.chunks())
    counted = {chunk.id: ledger.references(chunk) for chunk in ledger}
    _require(held == counted, f"I2: histories hold {dict(held)}, the ledger counts {counted}")


def _check_budget(pool: PagePool, streams: Sequence[Stream], budget_pages: int) -> None:
    permanent = {chunk.id: chunk.num_pages for stream in streams for chunk in stream.permanent}
    promised = sum(stream.peak_pages - sum(chunk.num_pages for chunk in stream.permanent) for stream in streams)
    _require(
        promised + sum(permanent.values()) == budget_pages, f"I3: budget {budget_pages} does not match the streams"
    )
    _require(budget_pages <= pool.num_pages, f"I3: budget {budget_pages} exceeds {pool.num_pages} pages")
    for stream in streams:
        _require(
            stream.held_pages <= stream.peak_pages,
            f"I3: stream {stream.id} holds {stream.held_pages} > {stream.peak_pages}",
        )


def _check_digests(pool: PagePool, ledger: ChunkLedger) -> None:
    for chunk in ledger:
        if chunk.digest is not None:
            _require(
                digest_pages(pool, chunk.table.ids) == chunk.digest, f"I4: pages of chunk {chunk.id} were overwritten"
            )


def _check_windows(streams: Sequence[Stream]) -> None:
    for stream in streams:
        for branch, history in stream.branches.items():
            kept = {*stream.window.live(history.num_committed), *history.pinned}
            expected = sorted(kept - history.dropped)
            _require(
                list(history.chunks) == expected,
                f"I5: stream {stream.id} {branch} keeps {list(history.chunks)}, not {expected}",
            )
            _require(
                all(index == chunk.index for index, chunk in history.chunks.items()),
                "I5: a chunk is kept under another index",
            )
        _require(
            stream.permanent == stream.permanent_chunks(), f"I6: permanent chunks of stream {stream.id} are out of date"
        )


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise IntegrityError(message)

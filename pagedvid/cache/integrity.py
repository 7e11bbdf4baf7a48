"""`check`: recomputes from scratch everything that the manager counts. Slow and simple on purpose.

I1 every page is free, or in one table of one live or pending chunk; tables are as long as the chunk's codecs want
I2 the reference count of a table is the number of branch histories that hold it
I3 a stream holds at most its peak; the budget (budget.py) adds up and is at most num_pages
I4 the page bytes of a live table never change (with debug_checks)
I5 live chunks are window.live(num_committed) and the pins, minus those dropped early, ascending; each is held by the
   heads whose own window keeps it, and a pin perhaps by more
I6 permanent are, of sinks and pins in their final codec, the tables that no window drops
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from pagedvid.cache.chunk import Chunk, digest_tables
from pagedvid.cache.ledger import ChunkLedger
from pagedvid.cache.plan import PendingChunk
from pagedvid.cache.pool import PageIds, PagePool
from pagedvid.cache.sizes import KVShape
from pagedvid.cache.stream import BranchHistory, Stream
from pagedvid.errors import IntegrityError

Tables = NDArray[np.bool_]
"""Some tables of a chunk: [2 L H], by (kind, layer, KV head)."""


def check_integrity(
    shape: KVShape,
    pool: PagePool,
    ledger: ChunkLedger,
    streams: Sequence[Stream],
    pending: Sequence[PendingChunk],
    budget_pages: int,
) -> None:
    """Raises IntegrityError for the first of I1 to I6 that does not hold."""
    held = [chunk for stream in streams for chunk in stream.chunks()]
    lent = [each.chunk for each in pending]
    _check_pages(pool, [*held, *lent])
    _check_tables(shape, [*held, *lent])
    _check_counts("I2: histories hold", held, ledger.all_references)
    _check_budget(pool, streams, budget_pages)
    _check_digests(pool, held)
    _check_windows(shape, streams)
    _check_permanent(shape, streams, ledger)


def _pages_by_chunk(chunks: Iterable[Chunk]) -> list[PageIds]:
    """The pages of each chunk once, whoever holds which part of it."""
    ids: dict[int, list[PageIds]] = {}
    for chunk in chunks:
        ids.setdefault(chunk.id, []).append(chunk.table.ids)
    return [np.unique(np.concatenate(each)) for each in ids.values()]


def _check_pages(pool: PagePool, chunks: Sequence[Chunk]) -> None:
    counts = np.bincount(np.concatenate([pool.free_ids, *_pages_by_chunk(chunks)]), minlength=pool.num_pages)
    _require(
        len(counts) == pool.num_pages and bool((counts == 1).all()), "I1: a page is lost, or in two places at once"
    )


def _check_tables(shape: KVShape, chunks: Sequence[Chunk]) -> None:
    for chunk in chunks:
        bounds = shape.table_bounds(chunk.num_tokens, chunk.codecs)
        _require(
            np.array_equal(chunk.table.indptr, bounds) and len(np.unique(chunk.table.ids)) == bounds[-1],
            f"I1: chunk {chunk.id} does not have the pages that its codecs want",
        )


def _check_counts(what: str, parts: Iterable[Chunk], counted: Mapping[int, NDArray[np.int64]]) -> None:
    held: dict[int, NDArray[np.int64]] = {}
    for part in parts:
        if part.num_pages:
            held[part.id] = held.get(part.id, 0) + part.table.is_filled.astype(np.int64)
    wrong = [key for key in held.keys() | counted.keys() if not np.array_equal(held.get(key, 0), counted.get(key, 0))]
    _require(not wrong, f"{what} other tables of chunks {sorted(wrong)} than the ledger counts")


def _check_budget(pool: PagePool, streams: Sequence[Stream], budget_pages: int) -> None:
    permanent = [part for stream in streams for part in stream.permanent]
    promised = sum(stream.peak_pages for stream in streams) - sum(part.num_pages for part in permanent)
    distinct = sum(map(len, _pages_by_chunk(permanent)))
    _require(promised + distinct == budget_pages, f"I3: budget {budget_pages} does not match the streams")
    _require(budget_pages <= pool.num_pages, f"I3: budget {budget_pages} exceeds {pool.num_pages} pages")
    for stream in streams:
        _require(
            stream.held_pages <= stream.peak_pages,
            f"I3: stream {stream.id} holds {stream.held_pages} > {stream.peak_pages}",
        )


def _check_digests(pool: PagePool, chunks: Sequence[Chunk]) -> None:
    for chunk in chunks:
        if chunk.digests is None:
            continue
        found = zip(chunk.table.is_filled, digest_tables(pool, chunk.table), chunk.digests, strict=True)
        is_intact = all(now == before for is_filled, now, before in found if is_filled)
        _require(is_intact, f"I4: pages of chunk {chunk.id} were overwritten")


def _check_windows(shape: KVShape, streams: Sequence[Stream]) -> None:
    for stream in streams:
        for branch, history in stream.branches.items():
            kept = {*stream.window.live(history.num_committed), *history.pinned}
            expected = sorted(kept - history.dropped)
            _require(
                list(history.chunks) == expected,
                f"I5: stream {stream.id} {branch} keeps {list(history.chunks)}, not {expected}",
            )
            for index, chunk in history.chunks.items():
                _require(index == chunk.index, "I5: a chunk is kept under another index")
                _require(
                    _has_its_tables(shape, stream, history, chunk),
                    f"I5: other heads hold chunk {index} of stream {stream.id} {branch} than their windows keep",
                )


def _has_its_tables(shape: KVShape, stream: Stream, history: BranchHistory, chunk: Chunk) -> bool:
    age = history.num_committed - 1 - chunk.index
    codecs = (stream.codecs.final if age else stream.codecs.at_commit)(chunk.index, stream.window)
    stored = np.diff(shape.table_bounds(chunk.num_tokens, codecs)) > 0
    wanted, actual = stored & _kept_tables(shape, stream, chunk, age), chunk.table.is_filled
    if chunk.index in history.pinned:
        return bool((wanted <= actual).all() and (actual <= stored).all())
    return np.array_equal(wanted, actual)


def _kept_tables(shape: KVShape, stream: Stream, chunk: Chunk, age: int | None) -> Tables:
    """The tables whose window keeps a chunk of that age; None: of any age."""
    window = stream.window
    recent_chunks = np.full((shape.num_layers, shape.num_kv_heads), window.recent_chunks)
    keeps_sinks = np.ones(recent_chunks.shape, dtype=bool)
    for layer, first, last, own_chunks, own_sinks in stream.codecs.look_back:
        recent_chunks[layer, first : last + 1] = min(own_chunks, window.recent_chunks)
        keeps_sinks[layer, first : last + 1] = own_sinks
    is_recent = np.zeros_like(keeps_sinks) if age is None else age < recent_chunks
    kept = is_recent | (keeps_sinks if chunk.index < window.sink_chunks else False)
    return np.tile(kept.ravel(), 2)


def _check_permanent(shape: KVShape, streams: Sequence[Stream], ledger: ChunkLedger) -> None:
    for stream in streams:
        expected = {}
        for history in stream.branches.values():
            for index, chunk in history.chunks.items():
                final = stream.codecs.final(index, stream.window)
                is_newest = index == history.num_committed - 1
                if is_newest and stream.codecs.at_commit(index, stream.window) != final:
                    continue
                if index in history.pinned:
                    expected[chunk.id] = chunk.table.is_filled
                elif index < stream.window.sink_chunks:
                    expected[chunk.id] = chunk.table.is_filled & _kept_tables(shape, stream, chunk, None)
        found = {part.id: part.table.is_filled for part in stream.permanent}
        _require(
            found.keys() == expected.keys() and all(np.array_equal(found[key], expected[key]) for key in found),
            f"I6: permanent chunks of stream {stream.id} are out of date",
        )
    parts = (part for stream in streams for part in stream.permanent)
    _check_counts("I6: streams hold permanently", parts, ledger.all_permanent)


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise IntegrityError(message)

"""What a cache reports about itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pagedvid.cache.budget import PageBudget
from pagedvid.cache.chunk import Chunk
from pagedvid.cache.ledger import ChunkLedger
from pagedvid.cache.pool import PageIds, PagePool
from pagedvid.cache.sizes import KVShape
from pagedvid.cache.stream import Stream


@dataclass(frozen=True)
class CacheStats:
    """How full the pool is. Bytes are those of live chunks, what is shared counted once."""

    num_pages: int
    pages_used: int
    pages_peak: int
    pages_reserved: int
    """The budget: pages promised to streams, whether taken yet or not."""
    page_bytes: int
    """Of one page."""
    num_streams: int
    num_chunks: int
    num_shared_chunks: int
    """Chunks that more than one branch keeps for the same head."""
    pages_shared: int
    """Pages that more than one branch holds."""
    num_evicted_chunks: int
    """Chunks that open streams have dropped so far, because they left the window or would not be read again."""
    stored_bytes: int
    """Codes, step sizes, zero points, padding of partial pages and correction factors."""
    bf16_bytes: int
    """The same tokens as dense BF16, for all heads, whether they keep the chunk or not."""
    padding_waste_ratio: float
    """Share of the used page space that holds no token."""


def collect_stats(
    shape: KVShape, pool: PagePool, ledger: ChunkLedger, budget: PageBudget, streams: Sequence[Stream]
) -> CacheStats:
    """Adds up the live chunks; changes nothing."""
    chunks = _fullest(streams)
    shared = [len(_shared_ids(chunk, ledger)) for chunk in chunks]
    num_chunk_pages = sum(chunk.num_pages for chunk in chunks)
    padding_pages = sum(shape.padding_pages(chunk.num_tokens, chunk.codecs) for chunk in chunks)
    return CacheStats(
        num_pages=pool.num_pages,
        pages_used=pool.num_used_pages,
        pages_peak=pool.peak_used_pages,
        pages_reserved=budget.reserved_pages,
        page_bytes=pool.page_bytes,
        num_streams=len(streams),
        num_chunks=len(chunks),
        num_shared_chunks=sum(num_pages > 0 for num_pages in shared),
        pages_shared=sum(shared),
        num_evicted_chunks=budget.num_evicted_chunks,
        stored_bytes=sum(shape.stored_bytes(chunk.num_tokens, chunk.codecs) for chunk in chunks),
        bf16_bytes=sum(shape.bf16_bytes(chunk.num_tokens) for chunk in chunks),
        padding_waste_ratio=padding_pages / max(1, num_chunk_pages),
    )


def own_and_shared_pages(stream: Stream, ledger: ChunkLedger) -> tuple[int, int]:
    """(Own, shared): pages that only this stream holds, and pages that other streams hold as well."""
    shared = sum(len(_shared_ids(chunk, ledger)) for chunk in stream.chunks())
    return stream.held_pages - shared, shared


def _shared_ids(chunk: Chunk, ledger: ChunkLedger) -> PageIds:
    return chunk.table.ids_of(ledger.references(chunk) > 1)


def _fullest(streams: Sequence[Stream]) -> list[Chunk]:
    """Every chunk once, as held by the stream that keeps it for the most heads: a superset of every other stream's."""
    held = sorted((chunk for stream in streams for chunk in stream.chunks()), key=lambda chunk: chunk.num_pages)
    return list({chunk.id: chunk for chunk in held}.values())

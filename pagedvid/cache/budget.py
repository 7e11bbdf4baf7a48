"""Which pages are promised to whom.

A stream's peak is known when it opens (stream_sizes.py `peak_pages`). Its sinks and pins are permanent and may be
shared with forks; all other chunks come and go. So the pool promises

    budget = sum over streams (peak_pages - permanent pages) + pages of distinct permanent tables   <=   num_pages

Whatever would exceed num_pages is refused with a CapacityError, so a commit never fails for lack of pages. A fork
reserves its own peak minus the sinks and pins that it shares. Heads with a window of their own let go of chunks
earlier, and of sinks if they do not keep them; only the tables of the other heads of a sink are permanent. A pin keeps
all that the chunk has when it is pinned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from pagedvid.cache.ledger import ChunkLedger
from pagedvid.cache.plan import PendingChunk
from pagedvid.cache.pool import PagePool
from pagedvid.cache.sizes import KVShape
from pagedvid.cache.stream import Stream
from pagedvid.errors import CapacityError
from pagedvid.shown import shown


class PageBudget:
    """The promises of one pool."""

    def __init__(
        self,
        shape: KVShape,
        pool: PagePool,
        ledger: ChunkLedger,
        on_every_rank: Callable[[bool], bool],
    ) -> None:
        """`on_every_rank`: see `CacheManager`; pages are promised only where all ranks have them."""
        self._shape = shape
        self._pool = pool
        self._ledger = ledger
        self._on_every_rank = on_every_rank
        self.promised_pages = 0
        """Pages that streams may still take in addition to their permanent ones."""
        self.borrowed_pages = 0
        """Pages that exceed the peaks of streams while a chunk and its replacement exist together."""
        self.num_evicted_chunks = 0
        """See `CacheStats`."""

    @property
    def owed_pages(self) -> int:
        """The budget, in pages, as the module docstring defines it."""
        return self.promised_pages + self._ledger.permanent_pages

    @property
    def reserved_pages(self) -> int:
        """The budget, plus borrowed pages."""
        return self.owed_pages + self.borrowed_pages

    def fits(self, num_pages: int) -> bool:
        """Whether that many more pages could be promised now."""
        return self._on_every_rank(self.reserved_pages + num_pages <= self._pool.num_pages)

    def require(self, num_pages: int, purpose: str) -> None:
        """Raises CapacityError unless they fit."""
        if self.fits(num_pages):
            return
        reserved, total = self.reserved_pages, self._pool.num_pages
        raise CapacityError(
            f"{purpose} needs {shown(num_pages)} pages; {reserved} of {total} are reserved, {total - reserved} are "
            f"left{'' if num_pages > total - reserved else ' here, and too few on another rank'}. "
            "Release a stream, shorten the window, use fewer bits, or give the pool more memory."
        )

    def admit(self, stream: Stream) -> None:
        """Counts a stream that has just been made, with its chunks; its pages were required before."""
        for chunk in stream.chunks():
            self._ledger.retain(chunk)
        self.promised_pages += _promise_of(stream)
        self._rebalance(stream)

    def dismiss(self, stream: Stream) -> None:
        """Ends a stream's promise and drops its chunks."""
        self.promised_pages -= _promise_of(stream)
        for part in stream.permanent:
            self._ledger.make_temporary(part)
        for chunk in stream.chunks():
            self._ledger.drop(chunk)
        for history in stream.branches.values():
            history.chunks.clear()
        stream.permanent = ()

    @contextmanager
    def changing(self, stream: Stream) -> Iterator[None]:
        """Histories or the plan of the stream may change in this block; references and the budget follow after it."""
        before, kept_before = set(stream.chunks()), _kept_chunks(stream)
        yield
        after = set(stream.chunks())
        self.num_evicted_chunks += len(kept_before - _kept_chunks(stream))
        for chunk in stream.chunks():
            if chunk not in before:
                self._ledger.retain(chunk)
        self._rebalance(stream)
        for chunk in sorted(before - after, key=lambda chunk: chunk.id):
            self._ledger.drop(chunk)

    def beyond_promises(self, wanted: Sequence[tuple[Stream, PendingChunk]]) -> int:
        """Pages that replacing chunks needs in addition to what was promised. Raises CapacityError if they do not fit.

        The old and the new chunk exist together until the step ends. A sink or pin that a fork shares stays even then.
        """
        if not wanted:
            return 0
        after = {stream: stream.held_pages for stream, _ in wanted}
        still_shared = 0
        for stream, pending in wanted:
            after[stream] += self._shape.chunk_pages(pending.chunk.num_tokens, pending.chunk.codecs)
            old = pending.replaces
            parts = (part for part in stream.permanent if old is not None and part.id == old.id)
            still_shared += sum(self._ledger.permanent_pages_of(part, min_streams=2) for part in parts)
        beyond = sum(max(0, held_pages - stream.peak_pages) for stream, held_pages in after.items())
        self.require(beyond + still_shared, "replacing a chunk while the old one is still in use")
        return beyond + still_shared

    def _rebalance(self, stream: Stream) -> None:
        """Recomputes the stream's peak and what is permanent after any change, and adjusts the budget."""
        before, promised_before = stream.permanent, _promise_of(stream)
        stream.peak_pages = stream.base_peak_pages + stream.pin_pages
        stream.permanent = tuple(part for history in stream.branches.values() for part in history.permanent())
        for part in stream.permanent:
            self._ledger.make_permanent(part)
        for part in before:
            self._ledger.make_temporary(part)
        self.promised_pages += _promise_of(stream) - promised_before


def _kept_chunks(stream: Stream) -> set[tuple[str, int]]:
    """(Branch, index of the chunk); a chunk that is replaced, or that some heads let go of, is still kept."""
    return {(branch, index) for branch, history in stream.branches.items() for index in history.chunks}


def _promise_of(stream: Stream) -> int:
    """Pages that the stream may still take in addition to its permanent ones."""
    return stream.peak_pages - stream.permanent_pages

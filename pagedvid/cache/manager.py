"""CacheManager: who may hold which pages. Bookkeeping only; attention/ reads and writes the bytes.

Budget. A stream's peak is known when it opens (stream_sizes.py `peak_pages`). Its sinks and pins are permanent and may
be shared with forks; all other chunks come and go. So the pool promises

    budget = sum over streams (peak_pages - permanent pages) + pages of distinct permanent tables   <=   num_pages

`open`, `fork` and `pin` raise CapacityError rather than exceed num_pages, so a commit never fails for lack of pages.
A fork reserves its own peak minus the sinks and pins that it shares. Heads with a window of their own let go of chunks
earlier, and of sinks if they do not keep them; only the tables of the other heads of a sink are permanent. A pin keeps
all that the chunk has when it is pinned. integrity.py lists what always holds. Nothing here is thread-safe.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch

from pagedvid.arguments import instance_of, list_of, whole_number, whole_numbers
from pagedvid.cache.checks import check_ranges
from pagedvid.cache.chunk import Chunk, digest_tables
from pagedvid.cache.integrity import check_integrity
from pagedvid.cache.ledger import ChunkLedger
from pagedvid.cache.plan import PendingChunk, QueryRange, StepPlan, resolve_ranges, wanted_chunks
from pagedvid.cache.pool import PagePool
from pagedvid.cache.spec import STREAM_CODECS, CacheSpec
from pagedvid.cache.stats import CacheStats, collect_stats
from pagedvid.cache.stream import BranchHistory, Stream
from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.cache.stream_sizes import peak_pages, planned_peak_pages
from pagedvid.cache.window import Commit, Window
from pagedvid.devices import read_device
from pagedvid.errors import CapacityError, ConfigError, ShapeError, StateError
from pagedvid.host_state import independent_of_host
from pagedvid.shown import shown
from pagedvid.units import parse_bytes


class CacheManager:
    """Opens streams, promises and takes pages, publishes chunks, slides windows."""

    @independent_of_host
    def __init__(self, spec: CacheSpec, memory: int | str, device: torch.device | str = "cpu") -> None:
        """`memory`: bytes, or text such as "24GiB", for the pages of keys and values together."""
        self.spec = instance_of(CacheSpec, "spec", spec, "CacheSpec(num_layers, num_kv_heads, head_dim)", ConfigError)
        self.shape = spec.shape
        self.pool = PagePool(
            self.shape.pages_in_memory(parse_bytes(memory)), self.shape.page_bytes, read_device(device)
        )
        self._ledger = ChunkLedger(self.pool)
        self._streams: dict[int, Stream] = {}
        self._next_stream_id = 0
        self._next_chunk_id = 0
        self._promised_pages = 0
        self._pending: list[PendingChunk] = []
        self._borrowed_pages = 0  # beyond a stream's peak, while a chunk and its replacement exist together

    # ------------------------------------------------------------------ streams

    def open(
        self,
        window: Window,
        chunk_tokens: int,
        *,
        branches: Sequence[str] = ("cond",),
        max_chunks: int | None = None,
        codecs: StreamCodecs | None = None,
        commits: Sequence[Commit] | None = None,
    ) -> Stream:
        """A new stream with its peak reserved.

        `chunk_tokens`: most tokens of one chunk. `max_chunks`: how many chunks will be committed at most, if known: a
        short video reserves less. `commits`: exactly what every branch will commit and drop, if that is known; the
        stream must then follow it (`max_chunks` is its length).
        Raises CapacityError (nothing is taken) when the peak does not fit, ShapeError for impossible sizes.
        """
        chunk_tokens = whole_number("chunk_tokens", chunk_tokens, 1)
        max_chunks = None if max_chunks is None else whole_number("max_chunks", max_chunks, 0)
        branches = list_of(str, "branches", branches, "('cond',)")
        if not branches or len(set(branches)) != len(branches):
            raise ShapeError(f"branches are {tuple(branches)}; give at least one name, and no name twice")
        if codecs is not None:
            self.check_codecs(codecs)
        codecs = codecs or self.spec.codecs
        peak = self.pages_needed(
            window, chunk_tokens, num_branches=len(branches), max_chunks=max_chunks, codecs=codecs, commits=commits
        )
        plan = None if commits is None else tuple(commits)
        max_chunks = max_chunks if plan is None else len(plan)
        if not self.fits(peak):
            chunks = f"{shown(window.sink_chunks)} sink + {shown(window.recent_chunks)} recent + 1 current chunks"
            tokens = f"{shown(chunk_tokens)} tokens x {len(branches)} branches ({codecs.history})"
            raise self._no_room(peak, f"a stream of {chunks} x {tokens}")
        histories = {branch: BranchHistory(window, codecs, self.shape) for branch in branches}
        return self._admit(Stream(-1, window, codecs, chunk_tokens, max_chunks, plan, histories, peak, peak))

    def check_codecs(self, codecs: StreamCodecs) -> None:
        """Raises ConfigError for codecs in which this cache cannot store chunks."""
        self.spec.check_codecs(codecs)

    def pages_needed(
        self,
        window: Window,
        chunk_tokens: int,
        *,
        num_branches: int = 1,
        max_chunks: int | None = None,
        codecs: StreamCodecs | None = None,
        commits: Sequence[Commit] | None = None,
    ) -> int:
        """Pages that `open` would reserve; changes nothing."""
        instance_of(Window, "window", window, "Window(sink_chunks=1, recent_chunks=4)", ShapeError)
        num_branches = whole_number("num_branches", num_branches, 1)
        if codecs is None:
            codecs = self.spec.codecs
        instance_of(StreamCodecs, "codecs", codecs, STREAM_CODECS, ConfigError)
        if commits is not None:
            commits = list_of(Commit, "commits", commits, "[Commit(num_tokens)]")
            return num_branches * planned_peak_pages(self.shape, window, codecs, commits)
        chunk_tokens = whole_number("chunk_tokens", chunk_tokens, 1)
        max_chunks = None if max_chunks is None else whole_number("max_chunks", max_chunks, 0)
        return num_branches * peak_pages(self.shape, window, codecs, chunk_tokens, max_chunks)

    def fork(self, stream: Stream) -> Stream:
        """A second stream that continues from the same chunks; no byte is copied.

        Reserves its own peak minus the sinks and pins that it shares. Raises CapacityError, StateError.
        """
        self._require_idle(stream)
        shared = stream.permanent_pages
        self._require(
            stream.peak_pages - shared, f"a fork of stream {stream.id} ({shared} pages of its sinks are shared)"
        )
        histories = {branch: history.copy() for branch, history in stream.branches.items()}
        twin = Stream(
            -1,
            stream.window,
            stream.codecs,
            stream.chunk_tokens,
            stream.max_chunks,
            stream.commits,
            histories,
            stream.base_peak_pages,
            stream.peak_pages,
        )
        for chunk in twin.chunks():
            self._ledger.retain(chunk)
        return self._admit(twin)

    def release(self, stream: Stream) -> None:
        """Ends the stream and its reservation; frees pages that no other stream holds. Raises StateError when busy."""
        self._require_idle(stream)
        self._promised_pages -= self._promise_of(stream)
        for part in stream.permanent:
            self._ledger.make_temporary(part)
        for chunk in stream.chunks():
            self._ledger.drop(chunk)
        for history in stream.branches.values():
            history.chunks.clear()
        stream.permanent = ()
        stream.is_released = True
        del self._streams[stream.id]

    def pin(self, stream: Stream, chunk_index: int, branch: str = "cond") -> None:
        """Keeps a live chunk until it is unpinned, even outside the window, for all heads that still have it.

        Raises CapacityError, StateError.
        """
        self._require_idle(stream)
        history = stream.history(branch)
        chunk_index = whole_number("chunk_index", chunk_index)
        (chunk,) = history.select((chunk_index,))
        if chunk_index in history.pinned or chunk_index < stream.window.sink_chunks:
            raise StateError(f"chunk {chunk_index} of stream {stream.id} is already kept for good")
        new_pages = history.pin_pages(chunk_index) - self._ledger.permanent_pages_of(chunk)
        self._require(new_pages, f"pinning chunk {chunk_index} of stream {stream.id}")
        with self._changing(stream):
            history.pinned |= {chunk_index}

    def unpin(self, stream: Stream, chunk_index: int, branch: str = "cond") -> None:
        """Undoes `pin`; what windows would have dropped of the chunk goes at once. Raises StateError if not pinned."""
        self._require_idle(stream)
        history, chunk_index = stream.history(branch), whole_number("chunk_index", chunk_index)
        if chunk_index not in history.pinned:
            raise StateError(
                f"chunk {chunk_index} of stream {stream.id} is not pinned; pinned are {sorted(history.pinned)}"
            )
        with self._changing(stream):
            history.pinned -= {chunk_index}
            history.slide()

    def drop(self, stream: Stream, chunk_indices: Sequence[int]) -> None:
        """Frees committed chunks of every branch before the window would, because they will not be read again.

        Raises StateError for a chunk that is not kept, or that is a sink or pinned, and for a busy stream.
        """
        self._require_idle(stream)
        indices = whole_numbers("chunk_indices", chunk_indices)
        for history in stream.branches.values():
            history.select(indices)
            lasting = [index for index in indices if index < stream.window.sink_chunks or index in history.pinned]
            if lasting:
                raise StateError(f"chunks {lasting} of stream {stream.id} are sinks or pinned; they cannot be dropped")
        with self._changing(stream):
            for history in stream.branches.values():
                history.drop(indices)

    # ------------------------------------------------------------------ steps

    @contextmanager
    def transaction(self, ranges: Sequence[QueryRange]) -> Iterator[StepPlan]:
        """Plans a step, lends its pages, and publishes its chunks together when the block ends without error.

        On any exception every page taken is free again and no stream has changed. Raises StateError and ShapeError for
        a request that cannot be planned, and StateError when the block ends before every layer was written.
        """
        for asked in ranges:
            self._require_idle(asked.stream)
        check_ranges(ranges)
        streams = {asked.stream for asked in ranges}
        writes = [wanted_chunks(asked) for asked in ranges]
        wanted = [(asked.stream, pending) for asked, group in zip(ranges, writes, strict=True) for pending in group]
        borrowed = self._borrow(wanted)
        self._borrowed_pages += borrowed
        try:
            for stream in streams:
                stream.is_busy = True
            for _, pending in wanted:
                self._lend(pending)
            plan = resolve_ranges(ranges, writes)
            yield plan
            self._require_written(plan)
        except BaseException:
            for _, pending in wanted:
                self.pool.give_back(pending.chunk.table.ids)
            raise
        else:
            self._publish(plan)
        finally:
            self._pending = [pending for pending in self._pending if not any(pending is mine for _, mine in wanted)]
            self._borrowed_pages -= borrowed
            for stream in streams:
                stream.is_busy = False

    # ------------------------------------------------------------------ queries

    @property
    def reserved_pages(self) -> int:
        """The budget of the module docstring, plus borrowed pages."""
        return self._promised_pages + self._ledger.permanent_pages + self._borrowed_pages

    @property
    def device(self) -> torch.device:
        """Where the pages are."""
        return self.pool.device

    @property
    def streams(self) -> tuple[Stream, ...]:
        """Open streams."""
        return tuple(self._streams.values())

    def fits(self, num_pages: int) -> bool:
        """Whether that many more pages could be promised now."""
        return self.reserved_pages + whole_number("num_pages", num_pages) <= self.pool.num_pages

    def stats(self) -> CacheStats:
        """A summary; changes nothing."""
        return collect_stats(self.shape, self.pool, self._ledger, self.streams, self.reserved_pages)

    @independent_of_host
    def check(self) -> None:
        """Recomputes every count from the streams. Raises IntegrityError for the first that disagrees."""
        reserved_pages = self.reserved_pages - self._borrowed_pages
        check_integrity(self.shape, self.pool, self._ledger, self.streams, self._pending, reserved_pages)

    # ------------------------------------------------------------------ inside

    def _admit(self, stream: Stream) -> Stream:
        stream.id = self._next_stream_id
        self._next_stream_id += 1
        self._streams[stream.id] = stream
        self._promised_pages += self._promise_of(stream)
        self._rebalance(stream)
        return stream

    def _promise_of(self, stream: Stream) -> int:
        """Pages that the stream may still take beyond what is permanent."""
        return stream.peak_pages - stream.permanent_pages

    @contextmanager
    def _changing(self, stream: Stream) -> Iterator[None]:
        """After the block has changed histories of the stream: counts references and the budget again."""
        before = set(stream.chunks())
        yield
        after = set(stream.chunks())
        for chunk in stream.chunks():
            if chunk not in before:
                self._ledger.retain(chunk)
        self._rebalance(stream)
        for chunk in sorted(before - after, key=lambda chunk: chunk.id):
            self._ledger.drop(chunk)

    def _rebalance(self, stream: Stream) -> None:
        """Recomputes the stream's peak and what is permanent after any change, and adjusts the budget."""
        before, promised_before = stream.permanent, self._promise_of(stream)
        histories = stream.branches.values()
        pin_pages = sum(history.pin_pages(index) for history in histories for index in history.pinned)
        stream.peak_pages = stream.base_peak_pages + pin_pages
        stream.permanent = tuple(part for history in histories for part in history.permanent())
        for part in stream.permanent:
            self._ledger.make_permanent(part)
        for part in before:
            self._ledger.make_temporary(part)
        self._promised_pages += self._promise_of(stream) - promised_before

    def _require(self, num_pages: int, purpose: str) -> None:
        if not self.fits(num_pages):
            raise self._no_room(num_pages, purpose)

    def _no_room(self, num_pages: int, purpose: str) -> CapacityError:
        reserved, total = self.reserved_pages, self.pool.num_pages
        return CapacityError(
            f"{purpose} needs {shown(num_pages)} pages; {reserved} of {total} are reserved, {total - reserved} are "
            "left. Release a stream, shorten the window, use fewer bits, or give the pool more memory."
        )

    def _require_open(self, stream: Stream) -> None:
        instance_of(Stream, "stream", stream, "what `open` or `fork` returned", StateError)
        if stream.is_released or self._streams.get(stream.id) is not stream:
            raise StateError(f"stream {stream.id} was released or belongs to another cache")

    def _require_idle(self, stream: Stream) -> None:
        self._require_open(stream)
        if stream.is_busy:
            raise StateError(f"stream {stream.id} is inside an open step; end the step first")

    def _borrow(self, wanted: Sequence[tuple[Stream, PendingChunk]]) -> int:
        """Pages that replacing chunks needs beyond what was promised; raises CapacityError if they are not there.

        Old and new exist together until the step ends, and a replaced sink or pin that a fork shares stays after it.
        """
        after = {stream: stream.held_pages for stream, _ in wanted}
        still_shared = 0
        for stream, pending in wanted:
            after[stream] += self._pages_of(pending)
            old = pending.replaces
            parts = (part for part in stream.permanent if old is not None and part.id == old.id)
            still_shared += sum(self._ledger.permanent_pages_of(part, min_streams=2) for part in parts)
        beyond = sum(max(0, held_pages - stream.peak_pages) for stream, held_pages in after.items())
        self._require(beyond + still_shared, "replacing a chunk while the old one is still in use")
        return beyond + still_shared

    def _pages_of(self, pending: PendingChunk) -> int:
        return self.shape.chunk_pages(pending.chunk.num_tokens, pending.chunk.codecs)

    @independent_of_host
    def _lend(self, pending: PendingChunk) -> None:
        self._next_chunk_id += 1
        ids = self.pool.take(self._pages_of(pending))
        pending.chunk = pending.chunk.with_pages(self._next_chunk_id, ids, self.shape, self.pool.device)
        self._pending.append(pending)

    def _require_written(self, plan: StepPlan) -> None:
        for pending in plan.pending:
            missing = set(range(self.spec.num_layers)) - pending.layers_written
            if missing:
                raise StateError(
                    f"the commit pass of chunk {pending.chunk.index} ended before layers {sorted(missing)} were "
                    "attended; every layer must call attend once. Nothing was published."
                )

    def _publish(self, plan: StepPlan) -> None:
        for range_ in plan.ranges:
            history = range_.stream.history(range_.branch)
            with self._changing(range_.stream):
                for pending in range_.writes:
                    chunk = self._seal(pending.chunk)
                    if chunk.index == history.num_committed:
                        history.append(chunk)
                    else:
                        history.exchange(chunk)

    @independent_of_host
    def _seal(self, chunk: Chunk) -> Chunk:
        if not self.spec.debug_checks:
            return chunk
        return replace(chunk, digests=digest_tables(self.pool, chunk.table))

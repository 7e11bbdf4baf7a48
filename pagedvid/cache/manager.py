"""CacheManager: who may hold which pages. Bookkeeping only; attention/ reads and writes the bytes.

budget.py says what is promised when a stream opens, and integrity.py lists what always holds. Nothing here is
thread-safe.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import torch

from pagedvid.arguments import instance_of, list_of, whole_number, whole_numbers
from pagedvid.cache.budget import PageBudget
from pagedvid.cache.checks import check_ranges
from pagedvid.cache.chunk import Chunk, digest_tables
from pagedvid.cache.host_copies import HostCopies
from pagedvid.cache.integrity import check_integrity
from pagedvid.cache.ledger import ChunkLedger
from pagedvid.cache.plan import PendingChunk, QueryRange, StepPlan, resolve_ranges, wanted_chunks
from pagedvid.cache.pool import PageIds, PagePool
from pagedvid.cache.spec import STREAM_CODECS, CacheSpec
from pagedvid.cache.stats import CacheStats, collect_stats, own_and_shared_pages
from pagedvid.cache.stream import BranchHistory, Stream
from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.cache.stream_copies import chunk_of, chunk_without_pages, image_of, require_same_cache, stream_of
from pagedvid.cache.stream_image import ChunkImage, StreamImage
from pagedvid.cache.stream_plan import read_plan, require_same_past
from pagedvid.cache.stream_sizes import peak_pages, planned_peak_pages
from pagedvid.cache.window import Commit, Window
from pagedvid.devices import read_device
from pagedvid.errors import ConfigError, ShapeError, StateError
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
        self._budget = PageBudget(self.shape, self.pool, self._ledger, self.on_every_rank)
        self._copies = HostCopies(self.pool)
        self._streams: dict[int, Stream] = {}
        self._next_stream_id = 0
        self._next_chunk_id = 0
        self._pending: list[PendingChunk] = []

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
        branches = list_of(str, "branches", branches, "('cond',)")
        if not branches or len(set(branches)) != len(branches):
            raise ShapeError(f"branches are {tuple(branches)}; give at least one name, and no name twice")
        codecs = self.spec.codecs if codecs is None else self.own_codecs(codecs)
        self.check_codecs(codecs)
        peak = self._peak_pages(window, chunk_tokens, len(branches), codecs, max_chunks, commits)
        chunks = f"{shown(window.sink_chunks)} sink + {shown(window.recent_chunks)} recent + 1 current chunks"
        tokens = f"{shown(chunk_tokens)} tokens x {len(branches)} branches ({codecs.history})"
        self._budget.require(peak, f"a stream of {chunks} x {tokens}")
        plan = read_plan(max_chunks, commits)
        histories = {branch: BranchHistory(window, codecs, self.shape) for branch in branches}
        return self._admit(Stream(-1, window, codecs, chunk_tokens, *plan, histories, peak, peak))

    def own_codecs(self, codecs: StreamCodecs) -> StreamCodecs:
        """`codecs` of all heads of the model, cut to the heads of this cache: the same unless ranks share the heads.
        Raises ConfigError."""
        return codecs

    @property
    def on_every_rank(self) -> Callable[[bool], bool]:
        """A function that tells whether its argument is true on all ranks that share the model's heads. Parts of the
        cache keep it, so it must not refer to the cache: a reference cycle would keep the pool's memory alive."""
        return bool

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
        num_branches = whole_number("num_branches", num_branches, 1)
        instance_of(StreamCodecs, "codecs", codecs or self.spec.codecs, STREAM_CODECS, ConfigError)
        codecs = self.spec.codecs if codecs is None else self.own_codecs(codecs)
        return self._peak_pages(window, chunk_tokens, num_branches, codecs, max_chunks, commits)

    def _peak_pages(
        self,
        window: Window,
        chunk_tokens: int,
        num_branches: int,
        codecs: StreamCodecs,
        max_chunks: int | None,
        commits: Sequence[Commit] | None,
    ) -> int:
        """Pages of a stream at its peak. `codecs`: those of the heads of this cache."""
        instance_of(Window, "window", window, "Window(sink_chunks=1, recent_chunks=4)", ShapeError)
        max_chunks, plan = read_plan(max_chunks, commits)
        if plan is not None:
            return num_branches * planned_peak_pages(self.shape, window, codecs, plan)
        chunk_tokens = whole_number("chunk_tokens", chunk_tokens, 1)
        return num_branches * peak_pages(self.shape, window, codecs, chunk_tokens, max_chunks)

    def fork(self, stream: Stream) -> Stream:
        """A second stream that continues from the same chunks; no byte is copied.

        Reserves its own peak minus the sinks and pins that it shares. Raises CapacityError, StateError.
        """
        self._require_idle(stream)
        shared = stream.permanent_pages
        self._budget.require(
            stream.peak_pages - shared, f"a fork of stream {stream.id} ({shared} pages of its sinks are shared)"
        )
        histories = {branch: history.copy() for branch, history in stream.branches.items()}
        return self._admit(replace(stream, branches=histories, permanent=()))

    @independent_of_host
    def copy_out(self, stream: Stream) -> StreamImage:
        """The stream as data on the host, which `copy_in` makes a stream again, bit for bit; the stream is unchanged.

        What forks share is copied. Raises StateError.
        """
        self._require_idle(stream)
        return image_of(stream, self.spec, self._copies)

    @independent_of_host
    def copy_in(self, image: StreamImage) -> Stream:
        """A new stream that goes on from an image; nothing is shared with the stream that the image was taken of.

        Raises CapacityError (nothing is taken) when `image_pages` do not fit, and ConfigError, which names what
        differs, for an image whose pages mean something else in this cache.
        """
        self._budget.require(self.image_pages(image), f"a copied stream of {image.num_pages} pages")
        taken: list[PageIds] = []

        def placed(chunk: ChunkImage) -> Chunk:
            taken.append(self.pool.take(chunk.num_pages))
            self._copies.pages_in(taken[-1], chunk.records_PB)
            self._next_chunk_id += 1
            return self._seal(chunk_of(chunk, self._next_chunk_id, taken[-1], self.shape, self.device))

        try:
            stream = stream_of(image, self.shape, self._base_peak_pages(image), placed)
        except BaseException:
            for ids in taken:
                self.pool.give_back(ids)
            raise
        return self._admit(stream)

    def image_pages(self, image: StreamImage) -> int:
        """Pages that `copy_in` would reserve: those of `open`, and of pins; changes nothing. Raises ConfigError."""
        instance_of(StreamImage, "image", image, "what `copy_out` returned", ConfigError)
        require_same_cache(image, self.spec)
        self.check_codecs(image.codecs)
        peak = self._base_peak_pages(image)
        return peak + stream_of(image, self.shape, peak, partial(chunk_without_pages, shape=self.shape)).pin_pages

    def extend(self, stream: Stream, *, max_chunks: int | None = None, commits: Sequence[Commit] | None = None) -> None:
        """Another plan for an open stream, such as a longer one; `max_chunks` and `commits` as for `open`.

        Raises CapacityError when the new peak does not fit, and StateError for a plan that contradicts what has been
        committed; the stream keeps its plan then.
        """
        self._require_idle(stream)
        max_chunks, plan = read_plan(max_chunks, commits)
        require_same_past(stream, max_chunks, plan)
        peak = self._base_peak_pages(replace(stream, max_chunks=max_chunks, commits=plan))
        self._budget.require(peak - stream.base_peak_pages, f"the new plan of stream {stream.id}")
        with self._budget.changing(stream):
            stream.base_peak_pages, stream.max_chunks, stream.commits = peak, max_chunks, plan

    def release(self, stream: Stream) -> None:
        """Ends the stream and its reservation; frees pages that no other stream holds. Raises StateError when busy."""
        self._require_idle(stream)
        self._budget.dismiss(stream)
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
            raise StateError(f"chunk {chunk_index} of stream {stream.id} is a sink or pinned already; it needs no pin")
        new_pages = history.pin_pages(chunk_index) - self._ledger.permanent_pages_of(chunk)
        self._budget.require(new_pages, f"pinning chunk {chunk_index} of stream {stream.id}")
        with self._budget.changing(stream):
            history.pinned |= {chunk_index}

    def unpin(self, stream: Stream, chunk_index: int, branch: str = "cond") -> None:
        """Undoes `pin`. Heads whose windows the chunk has left drop it now. Raises StateError if it is not pinned."""
        self._require_idle(stream)
        history, chunk_index = stream.history(branch), whole_number("chunk_index", chunk_index)
        if chunk_index not in history.pinned:
            raise StateError(
                f"chunk {chunk_index} of stream {stream.id} is not pinned; pinned are {sorted(history.pinned)}"
            )
        with self._budget.changing(stream):
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
        with self._budget.changing(stream):
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
        borrowed = self._budget.beyond_promises(wanted)
        self._budget.borrowed_pages += borrowed
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
            self._budget.borrowed_pages -= borrowed
            for stream in streams:
                stream.is_busy = False

    # ------------------------------------------------------------------ queries

    @property
    def reserved_pages(self) -> int:
        """The budget (budget.py), plus borrowed pages."""
        return self._budget.reserved_pages

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
        return self._budget.fits(whole_number("num_pages", num_pages))

    def could_hold(self, num_pages: int) -> bool:
        """Whether that many pages could be promised if nothing else were."""
        return self.on_every_rank(num_pages <= self.pool.num_pages)

    def own_and_shared_pages(self, stream: Stream) -> tuple[int, int]:
        """Pages that only this stream holds, and pages that others hold, too. Raises StateError."""
        self._require_open(stream)
        return own_and_shared_pages(stream, self._ledger)

    def stats(self) -> CacheStats:
        """A summary; changes nothing."""
        return collect_stats(self.shape, self.pool, self._ledger, self._budget, self.streams)

    @independent_of_host
    def check(self) -> None:
        """Recomputes every count from the streams (integrity.py). Raises IntegrityError for the first wrong one."""
        owed_pages = self._budget.owed_pages
        check_integrity(self.shape, self.pool, self._ledger, self.streams, self._pending, owed_pages)

    # ------------------------------------------------------------------ inside

    def _admit(self, stream: Stream) -> Stream:
        stream.id = self._next_stream_id
        self._next_stream_id += 1
        self._streams[stream.id] = stream
        self._budget.admit(stream)
        return stream

    def _base_peak_pages(self, planned: Stream | StreamImage) -> int:
        """What a stream of this plan reserves, without pins."""
        return self._peak_pages(
            planned.window,
            planned.chunk_tokens,
            len(planned.branches),
            planned.codecs,
            planned.max_chunks,
            planned.commits,
        )

    def _require_open(self, stream: Stream) -> None:
        instance_of(Stream, "stream", stream, "what `open` or `fork` returned", StateError)
        if stream.is_released or self._streams.get(stream.id) is not stream:
            raise StateError(f"stream {stream.id} was released or belongs to another cache; open a new one")

    def _require_idle(self, stream: Stream) -> None:
        self._require_open(stream)
        if stream.is_busy:
            raise StateError(f"stream {stream.id} is inside an open step; end the step first")

    @independent_of_host
    def _lend(self, pending: PendingChunk) -> None:
        self._next_chunk_id += 1
        ids = self.pool.take(self.shape.chunk_pages(pending.chunk.num_tokens, pending.chunk.codecs))
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
        self._copies.note_writes()
        for range_ in plan.ranges:
            history = range_.stream.history(range_.branch)
            with self._budget.changing(range_.stream):
                for pending in range_.writes:
                    chunk = self._seal(pending.chunk)
                    if chunk.index == history.num_committed:
                        history.append(chunk)
                    else:
                        history.exchange(chunk)

    @independent_of_host
    def _seal(self, chunk: Chunk) -> Chunk:
        if not self.spec.debug_checks or chunk.digests is not None:
            return chunk
        return replace(chunk, digests=digest_tables(self.pool, chunk.table))

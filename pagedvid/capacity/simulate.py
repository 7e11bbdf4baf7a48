"""A day of arrivals at many GPUs, decided by the engine's and the cache's own admission, without tensors or a clock.

Every GPU is a `CacheManager` whose pool is on PyTorch's "meta" device. Streams are opened in the engine's order
(engine/scheduler.py), each on the GPU with the most unreserved pages. Nothing is committed, so no page is ever taken.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from pagedvid.cache.manager import CacheManager
from pagedvid.cache.sizes import KVShape
from pagedvid.cache.stream import Stream
from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.cache.stream_sizes import peak_pages
from pagedvid.capacity.cards import Resolution, StreamSize
from pagedvid.capacity.simulation_result import Moment, Simulation, Waits, periods_of
from pagedvid.capacity.sizing import Question, answer, check_memory
from pagedvid.capacity.trace import Arrival
from pagedvid.engine.scheduler import admit_in_order
from pagedvid.errors import CapacityError, ConfigError

MAX_POOL_PAGES = 2**31 - 1
"""Most pages of one GPU; page ids have 32 bits."""
MAX_WINDOW_CHUNKS = 512
NUM_PERIODS = 24
"""Lines of the report: one per hour of a day."""


@dataclass(frozen=True)
class Fleet:
    """The GPUs, all alike."""

    question: Question
    codecs: StreamCodecs
    num_gpus: int
    pool_pages: int
    """Pages of one GPU's pool."""
    max_streams: int | None
    max_wait_seconds: float | None

    @staticmethod
    def of(
        question: Question,
        codecs: StreamCodecs,
        arrivals: Sequence[Arrival],
        num_gpus: int,
        max_streams: int | None = None,
        max_wait_seconds: float | None = None,
    ) -> Fleet:
        """Pools that leave room for the largest workspace of any arrival. Raises CapacityError, ConfigError."""
        check_memory(question)
        if question.size.window.max_chunks > MAX_WINDOW_CHUNKS:
            raise ConfigError(
                f"--trace with a window of {question.size.window.max_chunks} chunks would take too long; the most is "
                f"{MAX_WINDOW_CHUNKS}: give a shorter --window"
            )
        kinds = {(arrival.resolution, arrival.num_branches) for arrival in arrivals}
        pool_pages = min(
            answer(replace(question, resolution=resolution, num_branches=num_branches), "", codecs).pool_pages
            for resolution, num_branches in kinds
        )
        if pool_pages < 1:
            raise CapacityError("no memory is left for pages; give more memory, or --weights none")
        if pool_pages > MAX_POOL_PAGES:
            raise ConfigError(
                f"{pool_pages} pages of a GPU are too many to simulate; the most is {MAX_POOL_PAGES}: lower --memory"
            )
        return Fleet(question, codecs, num_gpus, pool_pages, max_streams, max_wait_seconds)

    @property
    def pool_bytes(self) -> int:
        """Bytes of one GPU's pool."""
        return self.shape.page_bytes * self.pool_pages

    @property
    def shape(self) -> KVShape:
        """Keys and values on pages that suit the codecs."""
        return self.question.size.on_pages_for(self.codecs).shape


@dataclass(frozen=True)
class _Request:
    """An arrival, and what `open` needs for it."""

    arrival: Arrival
    size: StreamSize
    max_commits: int
    num_pages: int


def simulate(fleet: Fleet, arrivals: Sequence[Arrival]) -> Simulation:
    """Runs the whole trace, until the last stream has left. `arrivals` are in order of time."""
    run = _Run(fleet)
    for arrival in arrivals:
        run.until(arrival.start_seconds)
        run.arrive(arrival)
    run.until(math.inf)
    return run.result(arrivals)


class _Run:
    """The state between two events."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        spec = fleet.question.size.on_pages_for(fleet.codecs).cache_spec(fleet.codecs)
        self._gpus = [CacheManager(spec, fleet.pool_bytes, "meta") for _ in range(fleet.num_gpus)]
        self._free_pages = np.full(fleet.num_gpus, fleet.pool_pages, dtype=np.int64)
        self._reserved_pages = 0
        self._queue: deque[_Request] = deque()
        self._departures: list[tuple[float, int, int, Stream]] = []
        self._counts: Counter[str] = Counter()
        self._waits: list[float] = []
        self._moments: list[Moment] = []
        self._kinds: dict[tuple[Resolution, int, int], tuple[StreamSize, int, int]] = {}

    def arrive(self, arrival: Arrival) -> None:
        """Admits, queues or rejects a stream at its start."""
        now = arrival.start_seconds
        request = self._request(arrival)
        if request.num_pages > self._fleet.pool_pages:
            self._counts["too_large"] += 1
            return
        self._queue.append(request)
        self._admit(now)
        self._note(now)

    def until(self, stop_seconds: float) -> None:
        """Handles departures and streams that give up waiting, in order of time, up to `stop_seconds`."""
        while True:
            departure = self._departures[0][0] if self._departures else math.inf
            expiry = self._expiry(self._queue[0]) if self._queue else math.inf
            now = min(departure, expiry)
            if now > stop_seconds or now == math.inf:
                return
            if departure <= expiry:
                _, _, gpu, stream = heapq.heappop(self._departures)
                self._leave(gpu, stream)
            else:
                self._queue.popleft()
                self._counts["gave_up"] += 1
            self._admit(now)
            self._note(now)

    def _admit(self, now: float) -> None:
        """Admits by the engine's own rule; a stream goes to the GPU with the most unreserved pages."""
        for request in admit_in_order(self._queue, self._can_start):
            gpu = int(self._free_pages.argmax())
            stream = self._gpus[gpu].open(
                request.size.window,
                request.size.chunk_tokens,
                branches=tuple(map(str, range(request.size.num_branches))),
                max_chunks=request.max_commits,
            )
            self._reserved_pages += stream.peak_pages
            self._waits.append(now - request.arrival.start_seconds)
            leaves = now + request.arrival.length_seconds
            heapq.heappush(self._departures, (leaves, len(self._waits), gpu, stream))
            self._refresh(gpu)

    def _can_start(self, request: _Request) -> bool:
        gpu = int(self._free_pages.argmax())
        return bool(self._free_pages[gpu] >= 0) and self._gpus[gpu].fits(request.num_pages)

    def _leave(self, gpu: int, stream: Stream) -> None:
        self._reserved_pages -= stream.peak_pages
        self._gpus[gpu].release(stream)
        self._refresh(gpu)

    def _refresh(self, gpu: int) -> None:
        """Counts the unreserved pages of a GPU again; -1 when it runs as many streams as it may."""
        manager, limit = self._gpus[gpu], self._fleet.max_streams
        is_full = limit is not None and len(manager.streams) >= limit
        self._free_pages[gpu] = -1 if is_full else manager.pool.num_pages - manager.reserved_pages

    def _request(self, arrival: Arrival) -> _Request:
        """What `open` needs. As in the engine, the last chunk of a video has no reader and is not committed."""
        card = self._fleet.question.card
        num_frames = math.ceil(arrival.length_seconds * card.latent_frames_per_second)
        num_commits = min(-(-num_frames // card.frames_per_chunk) - 1, MAX_WINDOW_CHUNKS + 2)
        key = (arrival.resolution, arrival.num_branches, num_commits)
        if key not in self._kinds:
            size = arrival.size(self._fleet.question)
            commits = num_commits if size.max_commits is None else size.max_commits
            pages = peak_pages(self._fleet.shape, size.window, self._fleet.codecs, size.chunk_tokens, commits)
            self._kinds[key] = (size, commits, size.num_branches * pages)
        return _Request(arrival, *self._kinds[key])

    def _expiry(self, request: _Request) -> float:
        patience = self._fleet.max_wait_seconds
        return math.inf if patience is None else request.arrival.start_seconds + patience

    def _note(self, now: float) -> None:
        self._moments.append(Moment(now, self._reserved_pages, len(self._departures), len(self._queue)))

    def result(self, arrivals: Sequence[Arrival]) -> Simulation:
        """Sums up. Means and periods end with the last arrival, because the time after it would dilute them."""
        all_pages = self._fleet.num_gpus * self._fleet.pool_pages
        stop_seconds = arrivals[-1].start_seconds
        (whole,) = periods_of(self._moments, stop_seconds, all_pages, 1) or (None,)
        return Simulation(
            num_streams=len(arrivals),
            num_admitted=len(self._waits),
            num_queued=sum(wait > 0 for wait in self._waits),
            num_too_large=self._counts["too_large"],
            num_gave_up=self._counts["gave_up"],
            waits=Waits.of(self._waits),
            peak_streams=max((moment.num_streams for moment in self._moments), default=0),
            peak_queue=max((moment.num_queued for moment in self._moments), default=0),
            mean_pages_ratio=whole.mean_pages_ratio if whole else 0.0,
            peak_pages_ratio=whole.peak_pages_ratio if whole else 0.0,
            periods=periods_of(self._moments, stop_seconds, all_pages, NUM_PERIODS),
        )

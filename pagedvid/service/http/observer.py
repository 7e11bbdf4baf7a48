"""Watches all sessions for the metrics: when chunks come, how long the first one takes, how fast frames are made."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Histogram

from pagedvid.service.records import CANCELLED, COMPLETED, FAILED, PAUSED, QUEUED
from pagedvid.service.session_events import ChunkRecorded, SessionEvent, SessionFailed, SessionState

RATE_SECONDS = 10.0
"""Over which the speed of the service is averaged."""
_SECONDS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 300, 1800)


class Observer:
    """Counts what the events of the sessions say; may be called from any thread."""

    def __init__(self, registry: CollectorRegistry, clock: Callable[[], float] = time.monotonic) -> None:
        """`registry`: where its counters and histograms are registered. `clock`: seconds that never go back."""
        self._clock = clock
        self._lock = threading.Lock()
        self._accepted: dict[str, float] = {}  # sessions without a chunk
        self._latest: dict[str, float] = {}  # time of their latest chunk; paused and ended ones have none
        self._frames: deque[tuple[float, int]] = deque()
        self._chunks = Counter("pagedvid_chunks_total", "Chunks recorded.", registry=registry)
        self._num_frames = Counter("pagedvid_frames_total", "Output frames recorded.", registry=registry)
        self._ended = Counter("pagedvid_sessions_ended_total", "Sessions that ended.", ["state"], registry=registry)
        self._first_chunk = Histogram(
            "pagedvid_time_to_first_chunk_seconds",
            "From a session's acceptance to its first chunk.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._between = Histogram(
            "pagedvid_inter_chunk_seconds",
            "Between two chunks of a session that runs.",
            buckets=_SECONDS,
            registry=registry,
        )

    def __call__(self, event: SessionEvent) -> None:
        """Takes an event in."""
        with self._lock:
            if isinstance(event, ChunkRecorded):
                self._take_chunk(event)
            elif isinstance(event, SessionState):
                self._take_state(event)
            elif isinstance(event, SessionFailed):
                self._ended.labels(FAILED).inc()
                self._forget(event.id)

    def frames_per_second(self) -> float:
        """Output frames that all sessions together got of late."""
        with self._lock:
            self._drop_old()
            return sum(number for _, number in self._frames) / RATE_SECONDS

    def _take_chunk(self, chunk: ChunkRecorded) -> None:
        now = self._clock()
        self._chunks.inc()
        self._num_frames.inc(chunk.num_frames)
        self._frames.append((now, chunk.num_frames))
        self._drop_old()
        if (accepted := self._accepted.pop(chunk.id, None)) is not None:
            self._first_chunk.observe(now - accepted)
        if (before := self._latest.get(chunk.id)) is not None:
            self._between.observe(now - before)
        self._latest[chunk.id] = now

    def _take_state(self, event: SessionState) -> None:
        if event.state == QUEUED:
            self._accepted.setdefault(event.id, self._clock())
        elif event.state == PAUSED:
            self._latest.pop(event.id, None)
        elif event.state in (COMPLETED, CANCELLED):
            self._ended.labels(event.state).inc()
            self._forget(event.id)

    def _forget(self, id: str) -> None:
        self._accepted.pop(id, None)
        self._latest.pop(id, None)

    def _drop_old(self) -> None:
        oldest = self._clock() - RATE_SECONDS
        while self._frames and self._frames[0][0] < oldest:
            self._frames.popleft()

"""How long the videos of a worker wait in its queue, as a histogram that is kept while they come and go."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Iterable

from pagedvid.engine.requests import VideoStatus
from pagedvid.engine.states import PAUSED, WAITING
from pagedvid.service.stats import Durations

BOUNDS_SECONDS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 300, 1800)


class QueueTimes:
    """Times from when a video began to wait until it began to be made.

    A fork waits for its source's next chunk. A video that was paused while it waited, or that ended so, is not counted;
    one that waits again because the engine was built again is counted again.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock`: seconds that never go back."""
        self._clock = clock
        self._since: dict[str, float] = {}
        """When the videos that wait now began to."""
        self._counts = [0] * (len(BOUNDS_SECONDS) + 1)
        self._sum_seconds = 0.0

    def follow(self, statuses: Iterable[VideoStatus]) -> None:
        """Takes in how all videos stand now."""
        now = self._clock()
        states = {status.id: status.state for status in statuses}
        for id in [id for id in self._since if states.get(id) != WAITING]:
            seconds = now - self._since.pop(id)
            if id in states and states[id] != PAUSED:
                self._counts[bisect_left(BOUNDS_SECONDS, seconds)] += 1
                self._sum_seconds += seconds
        for id, state in states.items():
            if state == WAITING:
                self._since.setdefault(id, now)

    def durations(self) -> Durations:
        """All times so far."""
        return Durations(BOUNDS_SECONDS, tuple(self._counts), self._sum_seconds)

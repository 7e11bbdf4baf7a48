"""How fast chunks are recorded at present, all sessions together."""

from __future__ import annotations

from collections import deque

_COUNTED = 32


class ChunkPace:
    """The time between the newest chunks. Times are in seconds of any clock."""

    def __init__(self) -> None:
        self._times: deque[float] = deque(maxlen=_COUNTED)

    def note(self, now: float) -> None:
        """Counts a chunk that was recorded at `now`."""
        self._times.append(now)

    @property
    def seconds_per_chunk(self) -> float | None:
        """Mean time from chunk to chunk; None: too few were recorded to tell."""
        times = list(self._times)
        return (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else None

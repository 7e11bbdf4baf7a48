"""How fast chunks are recorded at present, all sessions together."""

from __future__ import annotations

from collections import deque

_COUNTED = 32


class ChunkPace:
    """From the newest chunks. Times are in seconds of any clock."""

    def __init__(self) -> None:
        self._times: deque[float] = deque(maxlen=_COUNTED)

    def note(self, now: float) -> None:
        """A chunk was recorded."""
        self._times.append(now)

    @property
    def seconds_per_chunk(self) -> float | None:
        """None: too few were recorded to tell."""
        times = list(self._times)
        return (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else None

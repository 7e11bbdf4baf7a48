"""What a simulation reports: which streams were admitted, how long they waited, how full the pools were over time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Waits:
    """Seconds between arrival and admission, over all admitted streams."""

    mean: float
    median: float
    p99: float
    most: float

    @staticmethod
    def of(waits: Sequence[float]) -> Waits:
        """Sums up the wait of every admitted stream; zeros when none was admitted."""
        if not waits:
            return Waits(0.0, 0.0, 0.0, 0.0)
        median, p99 = np.percentile(waits, (50, 99))
        return Waits(float(np.mean(waits)), float(median), float(p99), max(waits))


@dataclass(frozen=True)
class Period:
    """A span of the simulated time; means are weighted by time."""

    start_seconds: float
    mean_pages_ratio: float
    peak_pages_ratio: float
    mean_streams: float
    mean_queue: float


@dataclass(frozen=True)
class Simulation:
    """What became of the streams. `pages` are reserved ones, as a share of all GPUs' pages."""

    num_streams: int
    num_admitted: int
    num_queued: int
    """Admitted, but not at once."""
    num_too_large: int
    num_gave_up: int
    waits: Waits
    peak_streams: int
    peak_queue: int
    mean_pages_ratio: float
    peak_pages_ratio: float
    periods: tuple[Period, ...]


class Moment(NamedTuple):
    """The state from one event to the next."""

    seconds: float
    reserved_pages: int
    num_streams: int
    num_queued: int


def periods_of(moments: Sequence[Moment], stop_seconds: float, all_pages: int, num_periods: int) -> tuple[Period, ...]:
    """The time from the first event to `stop_seconds`, in equal spans; nothing changes between two events.

    If `stop_seconds` is not after the first event, the time ends with the last event instead.
    """
    if not moments:
        return ()
    start_seconds = moments[0].seconds
    stop_seconds = stop_seconds if stop_seconds > start_seconds else moments[-1].seconds
    if stop_seconds <= start_seconds:
        return ()
    times, pages, streams, queued = (np.array(column, dtype=float) for column in zip(*moments, strict=True))
    edges = np.linspace(start_seconds, stop_seconds, num_periods + 1)
    widths = np.diff(edges)

    def means(values: NDArray[np.float64]) -> NDArray[np.float64]:
        total = np.concatenate([[0.0], np.cumsum(values[:-1] * np.diff(times))])
        return np.diff(np.interp(edges, times, total)) / widths

    mean_pages, mean_streams, mean_queue = means(pages), means(streams), means(queued)
    first = np.searchsorted(times, edges[:-1], side="right") - 1
    last = np.searchsorted(times, edges[1:], side="left")
    return tuple(
        Period(
            start_seconds=float(edges[i]),
            mean_pages_ratio=float(mean_pages[i]) / all_pages,
            peak_pages_ratio=float(pages[first[i] : max(last[i], first[i] + 1)].max()) / all_pages,
            mean_streams=float(mean_streams[i]),
            mean_queue=float(mean_queue[i]),
        )
        for i in range(num_periods)
    )

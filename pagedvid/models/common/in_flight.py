"""When which chunks are in flight, where each begins a fixed number of steps (`lag`) after the one before it.

    3 steps, lag 2      time      0   1   2   3   4   5   6
                        chunk 0   0   1   2   clean
                        chunk 1           0   1   2   clean
                        chunk 2                   0   1   2

A chunk that became clean passes once more, at the next time, so that its keys and values are stored; the last one does
not. With a lag of all the steps, chunks follow one another; with a lag of half of them, two are in flight.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class InFlight:
    """The chunks of one step."""

    steps: Mapping[int, int]
    """Each chunk's own denoise step, from 0; oldest first, at least one."""
    clean: int | None
    """The chunk before them, if it became clean in the step before."""


def chunks_in_flight(first: int, stop: int, num_steps: int, lag: int) -> Iterator[InFlight]:
    """Step by step, until the chunks `first` to `stop` - 1, at least one, are clean. `lag`: 1 to `num_steps`."""
    for time in range((stop - 1 - first) * lag + num_steps):
        oldest = first + max(0, -((num_steps - 1 - time) // lag))
        newest = min(first + time // lag, stop - 1)
        steps = {chunk: time - (chunk - first) * lag for chunk in range(oldest, newest + 1)}
        is_just_clean = oldest > first and steps[oldest] + lag == num_steps
        yield InFlight(steps, oldest - 1 if is_just_clean else None)

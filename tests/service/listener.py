"""A listener of a worker that keeps what it is told."""

from __future__ import annotations

import time
from collections import defaultdict

import numpy as np

from pagedvid.service.events import ChunkEvent, Event, FailureEvent, RebuiltEvent, StateEvent

WAIT_SECONDS = 20


class Listener:
    def __init__(self) -> None:
        self.events: list[Event] = []
        self.chunks: defaultdict[str, list[ChunkEvent]] = defaultdict(list)

    def __call__(self, event: Event) -> None:
        if isinstance(event, ChunkEvent):
            self.chunks[event.id].append(event)
        self.events.append(event)

    def frames(self, id: str) -> np.ndarray:
        """All frames of a video so far, after a check that each was given once, in order."""
        chunks = self.chunks[id]
        firsts = [chunk.first_frame for chunk in chunks]
        lengths = [len(chunk.frames) for chunk in chunks]
        assert firsts == [firsts[0] + sum(lengths[:number]) for number in range(len(lengths))]
        return np.concatenate([chunk.frames for chunk in chunks])

    def states(self, id: str) -> list[str]:
        return [event.state for event in self.events if isinstance(event, StateEvent) and event.id == id]

    def failures(self) -> dict[str, str]:
        return {event.id: event.kind for event in self.events if isinstance(event, FailureEvent)}

    @property
    def num_rebuilds(self) -> int:
        return sum(isinstance(event, RebuiltEvent) for event in self.events)

    def wait_for_end(self, *ids: str) -> None:
        wait_until(lambda: all("gone" in self.states(id) for id in ids))


def wait_until(condition) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.002)

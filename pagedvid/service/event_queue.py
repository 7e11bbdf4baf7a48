"""Events on their way from a worker's thread to the one that writes files.

Videos are written while the next ones are made. When writing is slower, the worker waits, and memory holds a few chunks
of frames rather than all of them.
"""

from __future__ import annotations

import math
from collections import deque
from threading import Condition
from typing import Generic, TypeVar

Item = TypeVar("Item")


class EventQueue(Generic[Item]):
    """At most so many events, oldest first."""

    def __init__(self, max_waiting: int) -> None:
        self._max_waiting: float = max_waiting
        self._events: deque[Item] = deque()
        self._changed = Condition()

    def put(self, event: Item) -> None:
        """Adds an event; waits while the queue is full."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._events) < self._max_waiting)
            self._events.append(event)
            self._changed.notify_all()

    def take(self, seconds: float) -> Item | None:
        """The oldest event; None when none comes within so many seconds."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._events, seconds):
                return None
            self._changed.notify_all()
            return self._events.popleft()

    def let_all_in(self) -> None:
        """From now on `put` does not wait."""
        with self._changed:
            self._max_waiting = math.inf
            self._changed.notify_all()

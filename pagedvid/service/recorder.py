"""The recorder's thread: takes a worker's events in order, and what must happen between two of them.

While a session is held, its events wait. Whoever changes a session's course holds it until the change can survive a
crash, so that no frame of the new course is recorded before. Forks hold their source until they do not need it any
more.

What runs here waits for the disk only, never for a worker or a verb, because both wait for this thread.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from queue import Queue
from threading import Lock, Thread, current_thread
from typing import TypeVar

from pagedvid.service.events import Event, VideoEvent

logger = logging.getLogger(__name__)

MAX_WAITING = 64
"""Events; a worker that is so far ahead of the disk waits, so that its frames do not fill the memory."""

R = TypeVar("R")


class Recorder:
    """Every method but `start` and `stop` may be called from any thread."""

    def __init__(self, record: Callable[[Event], None], on_held: Callable[[VideoEvent], None]) -> None:
        """`record`: handles one event, on the recorder's thread. `on_held`: is told there of events that wait."""
        self._record, self._on_held = record, on_held
        self._jobs: Queue[Callable[[], None] | None] = Queue(MAX_WAITING)
        self._gate = Lock()
        """Held while a job is queued, so that none is queued after the one that ends the thread."""
        self._is_open = False
        self._held: dict[str, list[VideoEvent]] = {}
        self._thread = Thread(target=self._run, name="pagedvid-recorder", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._is_open = True
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread once everything that was told is recorded."""
        with self._gate:
            self._is_open = False
        self._jobs.put(None)
        self._thread.join()

    def tell(self, event: Event) -> None:
        """To be called with every event of the worker. Waits while MAX_WAITING others wait. After `stop`, events are
        lost."""
        self._put(lambda: self._take(event))

    def call(self, function: Callable[[], R]) -> R:
        """Runs it when everything that was told before is recorded. Raises what it raises.

        On the recorder's thread, before it begins and when it has ended, it runs at once.
        """
        if current_thread() is self._thread:
            return function()
        future: Future[R] = Future()
        if self._put(lambda: _answer(future, function)):
            return future.result()
        if self._thread.is_alive():
            self._thread.join()
        return function()

    def hold(self, id: str) -> None:
        """From now on this session's events wait until `release`."""
        self.call(lambda: self._held.setdefault(id, []))

    def is_held(self, id: str) -> bool:
        """Whether a session's events wait. Only for the recorder's thread."""
        return id in self._held

    def release(self, id: str, settle: Callable[[Sequence[Event]], None]) -> None:
        """This session's events wait no longer. `settle` gets those that waited, and has to record them; its errors are
        raised."""
        self.call(lambda: settle(self._held.pop(id, [])))

    def let_through(self, id: str, is_due: Callable[[VideoEvent], bool]) -> None:
        """Records those of a session's events that are due; the others wait on. On the recorder's thread."""
        if id in self._held:
            due = [event for event in self._held[id] if is_due(event)]
            self._held[id] = [event for event in self._held[id] if not is_due(event)]
            self.record_all(due)

    def record_all(self, events: Sequence[Event]) -> None:
        """Records events that waited; for `release`."""
        for event in events:
            self._record(event)

    def _put(self, job: Callable[[], None]) -> bool:
        """Queues a job; returns whether it will be done."""
        with self._gate:
            if self._is_open:
                self._jobs.put(job)
            return self._is_open

    # ------------------------------------------------------------------ on the recorder's thread

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job()
            except Exception:
                logger.exception("the recorder met an error that no session accounts for")

    def _take(self, event: Event) -> None:
        if not isinstance(event, VideoEvent) or event.id not in self._held:
            self._record(event)
            return
        self._held[event.id].append(event)
        self._on_held(event)


def _answer(future: Future[R], function: Callable[[], R]) -> None:
    try:
        future.set_result(function())
    except BaseException as error:
        future.set_exception(error)

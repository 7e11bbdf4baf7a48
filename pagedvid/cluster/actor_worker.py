"""A worker in a process of its own that is used like one of this process: it tells its events to a listener.

It is dead when its process has ended, whatever the reason.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from threading import Thread
from typing import Any

from typing_extensions import override

from pagedvid.cluster.remote_worker import RemoteVerbs, RemoteWorker
from pagedvid.engine.failures import described
from pagedvid.errors import WorkerError
from pagedvid.service.events import Event
from pagedvid.service.stats import DEAD, STARTING, STOPPED, WorkerStats

logger = logging.getLogger(__name__)

_GRACE_SECONDS = 5.0
"""Waited for an answer beyond the time that a process has to stop."""


class ActorWorker(RemoteVerbs):
    """See `Worker`."""

    def __init__(self, start_worker: Callable[[], RemoteWorker], on_event: Callable[[Event], None]) -> None:
        """`start_worker`: makes the process. `on_event`: called on a thread of this worker."""
        self._start_worker, self._on_event = start_worker, on_event
        self._stats = WorkerStats(STARTING)
        self._remote: RemoteWorker | None = None
        self._thread = Thread(target=self._listen, name="pagedvid-actor", daemon=True)

    def start(self) -> None:
        """Waits for a free device and the first engine. Raises what building it raises, and WorkerError."""
        self._remote = self._start_worker()
        try:
            self._remote.start().result()
        except BaseException as error:
            self._end(DEAD, str(error))
            raise
        self._thread.start()

    def stop(self, *, seconds: float) -> None:
        """Ends the process after its present step, and at once when that takes longer. Raises WorkerError then."""
        if self._remote is None or self._stats.state == DEAD:
            return
        try:
            self._remote.stop(seconds=seconds).result(seconds + _GRACE_SECONDS)
        finally:
            self._end(STOPPED, "the worker was stopped")

    def stats(self) -> WorkerStats:
        """The numbers that came with its latest events."""
        return self._stats

    @override
    def _ask(self, verb: str, *args: Any, **kwargs: Any) -> Future[Any]:
        if self._remote is not None and self._stats.state != DEAD:
            return self._remote._ask(verb, *args, **kwargs)
        dead: Future[Any] = Future()
        dead.set_exception(WorkerError(self._stats.reason or "the worker has not been started"))
        return dead

    def _listen(self) -> None:
        try:
            while self._stats.state not in (DEAD, STOPPED):
                self._hear_next()
        except WorkerError as error:
            self._end(DEAD, str(error))
        except Exception as error:  # whoever holds a worker that is not heard any more must know
            logger.exception("a worker's events cannot be heard")
            self._end(DEAD, f"its events cannot be heard: {described(error)}")

    def _hear_next(self) -> None:
        assert self._remote is not None
        events, stats = self._remote.events().result()
        if self._stats.state != STOPPED and stats.state != DEAD:
            self._stats = stats  # before the events: whoever hears one looks here, and finds what it says
        for event in events:
            self._on_event(event)
        if stats.state == DEAD:
            self._end(DEAD, stats.reason)

    def _end(self, state: str, reason: str) -> None:
        """The first end counts. The process goes, too: it may only be out of reach."""
        if self._stats.state not in (DEAD, STOPPED):
            self._stats = replace(self._stats, state=state, reason=reason)
        if self._remote is not None:
            self._remote.kill()

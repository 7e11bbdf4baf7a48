"""A worker in a process of its own: Ray makes an actor of this class.

Whoever holds the actor asks it through the verbs of `Worker`, and hears its events by asking for them again and again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from pagedvid.engine.engine import Engine
from pagedvid.service.event_queue import EventQueue
from pagedvid.service.events import Event
from pagedvid.service.stats import WorkerStats
from pagedvid.service.worker import Worker

MAX_UNSENT = 256
"""Events that wait to be asked for; the worker waits while there are more."""
WAIT_SECONDS = 0.5
"""How long `events` waits for the first one."""


class Outlet(Protocol):
    """What becomes of a worker's events in its own process, before the rest is sent to whoever holds the actor."""

    def hear(self, event: Event) -> None:
        """On the worker's thread."""
        ...

    def close(self) -> None:
        """No more events come. Returns when all of them have been dealt with."""
        ...


class Direct:
    """Sends every event as it is, frames included."""

    def __init__(self, send: Callable[[Any], None]) -> None:
        self.hear = send

    def close(self) -> None:
        """Nothing waits."""


class WorkerActor:
    """Holds one `Worker`. All methods are for Ray, which runs them on the actor's event loop."""

    def __init__(
        self,
        build_engine: Callable[[], Engine],
        make_outlet: Callable[[Callable[[Any], None]], Outlet] = Direct,
        settings: dict[str, Any] | None = None,
    ) -> None:
        """`build_engine`: called here, and again when the engine breaks. `make_outlet`: gets the function that sends an
        event. `settings`: further arguments of `Worker`."""
        self._unsent = EventQueue[Any](MAX_UNSENT)
        self._outlet = make_outlet(self._unsent.put)
        self._worker = Worker(build_engine, self._outlet.hear, **(settings or {}))

    async def start(self) -> None:
        """See `Worker.start`."""
        await asyncio.to_thread(self._worker.start)

    async def ask(self, verb: str, *args: Any, **kwargs: Any) -> Any:
        """The result of a verb of `Worker`, such as "submit", once it was carried out. Raises its error."""
        return await asyncio.wrap_future(getattr(self._worker, verb)(*args, **kwargs))

    async def events(self) -> tuple[list[Any], WorkerStats]:
        """The events since the last call, oldest first, and the worker's numbers; waits a little for the first one."""
        events = await asyncio.to_thread(self._take)
        return events, self._worker.stats()

    async def stop(self, checkpoint_folder: Path | None = None, seconds: float = 30.0) -> dict[str, Path]:
        """See `Worker.stop`. Its last events can still be asked for."""
        self._unsent.let_all_in()
        try:
            return await asyncio.to_thread(self._worker.stop, checkpoint_folder, seconds=seconds)
        finally:
            await asyncio.to_thread(self._outlet.close)

    def _take(self) -> list[Any]:
        events = []
        event = self._unsent.take(WAIT_SECONDS)
        while event is not None:
            events.append(event)
            event = self._unsent.take(0)
        return events

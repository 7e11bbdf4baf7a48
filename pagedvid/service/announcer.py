"""Tells subscribers what happens to sessions. Callbacks must return at once, because telling waits for nobody."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from pagedvid.service.session_events import SessionEvent

logger = logging.getLogger(__name__)

Callback = Callable[[SessionEvent], None]


class Announcer:
    """Passes events on, to those who follow their session and to those who follow all. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._callbacks: dict[str | None, list[Callback]] = {}

    def subscribe(self, id: str | None, callback: Callback) -> Callable[[], None]:
        """Calls `callback` with every event of the session `id`, or of all (None), until the returned function is
        called, which may be done more than once."""
        with self._lock:
            self._callbacks.setdefault(id, []).append(callback)
        return lambda: self._remove(id, callback)

    def tell(self, event: SessionEvent) -> None:
        """Calls everyone who subscribed to the event's session or to all. A callback that raises is dropped."""
        with self._lock:
            callbacks = [(id, it) for id in (event.id, None) for it in self._callbacks.get(id, ())]
        for id, callback in callbacks:
            try:
                callback(event)
            except Exception:
                logger.exception("a listener failed on %s; it is not told any more", type(event).__name__)
                self._remove(id, callback)

    def _remove(self, id: str | None, callback: Callback) -> None:
        with self._lock:
            callbacks = self._callbacks.get(id, [])
            if callback in callbacks:
                callbacks.remove(callback)
            if not callbacks:
                self._callbacks.pop(id, None)

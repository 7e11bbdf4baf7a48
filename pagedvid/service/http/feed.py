"""From the threads of the service to clients: events of sessions in bounded queues, and one place that ends them all.

A client that reads slowly loses events, not memory: what it missed it reads from the session itself.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
from starlette.concurrency import run_in_threadpool

from pagedvid.service.http.contract import SessionsLike
from pagedvid.service.session_events import SessionEvent

MAX_EVENTS = 256
"""Most events that wait for one client."""


class Feed:
    """The events that wait for one client. Only `put` may be called from other threads."""

    def __init__(self) -> None:
        self.has_lost = False
        """Whether events were dropped since this was last set to False."""
        self.is_closed = False
        """Whether the service stops: the client should be sent away."""
        self._loop = asyncio.get_running_loop()
        self._events: deque[SessionEvent] = deque()
        self._news = asyncio.Event()

    def put(self, event: SessionEvent) -> None:
        """Adds an event, from any thread."""
        self._loop.call_soon_threadsafe(self._add, event)

    def _add(self, event: SessionEvent) -> None:
        if len(self._events) < MAX_EVENTS:
            self._events.append(event)
        else:
            self.has_lost = True
        self._news.set()

    def close(self) -> None:
        """Closes the feed, and ends the wait of the client's task."""
        self.is_closed = True
        self._news.set()

    async def wait(self, seconds: float | None = None) -> list[SessionEvent]:
        """All events that wait, as soon as there are any; [] after this time, and when the feed was closed."""
        try:
            await asyncio.wait_for(self._news.wait(), seconds)
        except asyncio.TimeoutError:
            return []
        self._news.clear()
        if self.is_closed:
            self._news.set()
        events = list(self._events)
        self._events.clear()
        return events


class Feeds:
    """The feeds of all clients that listen now."""

    def __init__(self, sessions: SessionsLike) -> None:
        self._sessions = sessions
        self._open: set[Feed] = set()
        self._is_closed = False

    @property
    def num_open(self) -> int:
        """How many clients listen now."""
        return len(self._open)

    def close(self) -> None:
        """Sends all clients away; the service stops."""
        self._is_closed = True
        for feed in self._open:
            feed.close()

    @asynccontextmanager
    async def subscribed(self, id: str | None) -> AsyncIterator[Feed]:
        """The events of a session, or of all, from now on. Raises NotFound."""
        feed = Feed()
        unsubscribe = await run_in_threadpool(self._sessions.subscribe, id, feed.put)
        self._open.add(feed)
        if self._is_closed:
            feed.close()
        try:
            yield feed
        finally:
            self._open.discard(feed)
            with anyio.CancelScope(shield=True):
                await run_in_threadpool(unsubscribe)

    @asynccontextmanager
    async def watching(self, id: str) -> AsyncIterator[Feed]:
        """As `subscribed`, for a client that counts as a viewer of the session meanwhile. Raises NotFound."""
        async with self.subscribed(id) as feed:
            await run_in_threadpool(self._sessions.client_came, id)
            try:
                yield feed
            finally:
                with anyio.CancelScope(shield=True):
                    await run_in_threadpool(self._sessions.client_left, id)

"""Closes connections that send no request in time, and those beyond the most that are allowed.

uvicorn bounds the pause between two requests only. Here the head of every request has a deadline, the first one's from
the moment of the connection, and a connection too many is closed before it is read.
"""

from __future__ import annotations

import asyncio
from typing import Any

from typing_extensions import override
from uvicorn.protocols.http.h11_impl import H11Protocol


def bounded_protocol(max_connections: int, header_seconds: float) -> type[H11Protocol]:
    """uvicorn's protocol with these bounds."""

    class Bounded(H11Protocol):
        _deadline: asyncio.TimerHandle | None = None

        @override
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if len(self.connections) > max_connections:
                transport.abort()
                return
            self._watch()

        @override
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        @override
        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._watch()

        @override
        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_watch()
            super().connection_lost(exc)

        def _watch(self) -> None:
            """Starts the clock while the service waits for the head of a request, stops it when the head is there."""
            is_busy = self.cycle is not None and not self.cycle.response_complete
            is_websocket = self not in self.connections  # another protocol has taken over
            if self.transport.is_closing() or is_busy or is_websocket:
                self._stop_watch()
            elif self._deadline is None:
                self._deadline = self.loop.call_later(header_seconds, self.transport.abort)

        def _stop_watch(self) -> None:
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None

    return Bounded

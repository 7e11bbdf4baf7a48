"""uvicorn, as `pagedvid serve` runs it."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI
from typing_extensions import override

from pagedvid.config.serving import ServeConfig
from pagedvid.errors import ConfigError
from pagedvid.service.http.connections import bounded_protocol
from pagedvid.shown import short

MAX_HEAD_BYTES = 32 * 1024
"""Most bytes of a request's first line and headers together."""
BACKLOG = 128
CONNECTIONS_SHARE = 0.3
"""Share of the time for stopping that connections have to end by themselves."""


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there. Raises ConfigError, such as for a port that is taken."""
    try:
        (family, kind, protocol, _, address), *_ = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        listener = socket.socket(family, kind, protocol)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is no name of a host"
        raise ConfigError(f"--host {short(host)}: {reason}; give an address of this machine") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigError(f"--host {short(host)} --port {port}: {error.strerror}; give another host or port") from None
    return listener


class Server(uvicorn.Server):
    """Tells when it is ready; when it stops, sends clients that listen away before it waits for the others."""

    def __init__(self, app: FastAPI, limits: ServeConfig, stop_seconds: float, on_ready: Callable[[], None]) -> None:
        """`stop_seconds`: how long stopping may take; connections get a part of it, what follows the rest."""
        config = uvicorn.Config(
            app,
            http=bounded_protocol(limits.max_connections, limits.header_seconds),
            h11_max_incomplete_event_size=MAX_HEAD_BYTES,
            ws_max_size=limits.max_body,
            ws_per_message_deflate=False,  # frames are compressed, and bombs are not
            timeout_keep_alive=max(1, round(limits.header_seconds)),
            timeout_graceful_shutdown=max(1, round(CONNECTIONS_SHARE * stop_seconds)),
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
        )
        super().__init__(config)
        self._feeds = app.state.service.feeds
        self._on_ready, self._stop_seconds = on_ready, stop_seconds
        self._stopped_at: float | None = None

    def seconds_left(self) -> float:
        """What is left of the time for stopping, which begins when the server is asked to stop."""
        began = time.monotonic() if self._stopped_at is None else self._stopped_at
        return max(0.0, self._stop_seconds - (time.monotonic() - began))

    @override
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begins to accept requests."""
        await super().startup(sockets)
        self._on_ready()

    @override
    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Ends streams and WebSockets, then everything else."""
        self._stopped_at = time.monotonic()
        self._feeds.close()
        await super().shutdown(sockets)

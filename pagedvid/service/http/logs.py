"""Logs as lines of JSON, and one line for every request. Prompts and API keys are in none of them."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from typing_extensions import override

from pagedvid.shown import short

logger = logging.getLogger(__name__)

MAX_MESSAGE_CHARS = 2000
FIELDS = ("session_id", "method", "route", "status", "seconds")
"""What a record may say besides its message."""


class JsonLines(logging.Formatter):
    """One line of JSON a record: time, level, logger, message, `FIELDS`, and the traceback of an error."""

    @override
    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": short(record.getMessage(), MAX_MESSAGE_CHARS),
        }
        line |= {name: getattr(record, name) for name in FIELDS if getattr(record, name, None) is not None}
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


Observe = Callable[[str, str, int, float], None]
"""(method, route, status, seconds) of a request."""


class RequestLog:
    """Logs every request and WebSocket when it has ended, and tells `observe`."""

    def __init__(self, app: ASGIApp, observe: Observe) -> None:
        self.app = app
        self._observe = observe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI interface."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        started, status = time.monotonic(), 500

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                status = message["status"]
            elif message["type"] == "websocket.accept":
                status = 101
            await send(message)

        try:
            await self.app(scope, receive, send_and_note)
        finally:
            seconds = time.monotonic() - started
            method, route = scope.get("method", "WEBSOCKET"), route_of(scope)
            self._observe(method, route, status, seconds)
            logger.info("request", extra=_fields(scope, method, route, status, seconds))


def route_of(scope: Scope) -> str:
    """The template of the path, such as /v1/sessions/{id}; "other" for paths that no endpoint has."""
    path = getattr(scope.get("route"), "path", None)
    return path if isinstance(path, str) and path else "other"


def _fields(scope: Scope, method: str, route: str, status: int, seconds: float) -> dict[str, Any]:
    parameters = scope.get("path_params") or {}
    return {
        "session_id": parameters.get("id") or parameters.get("video_id"),
        "method": method,
        "route": route,
        "status": status,
        "seconds": round(seconds, 6),
    }

"""Refuses cross-site requests: those that a page of another site made the user's browser send.

A service on a loopback address is reachable from every page that its user visits: a form or a WebSocket of any site may
call it. Browsers name the site in the header `Origin`. Programs send none and pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from pagedvid.service.http.errors import error_response
from pagedvid.shown import short


class OriginGuard:
    """403 for requests and WebSockets of pages that come neither from this service nor from `allowed` origins."""

    def __init__(self, app: ASGIApp, allowed: Sequence[str]) -> None:
        self.app = app
        self._allowed = frozenset(origin.lower() for origin in allowed)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI interface."""
        if scope["type"] == "lifespan" or self._is_own(Headers(scope=scope)):
            await self.app(scope, receive, send)
            return
        origin = short(Headers(scope=scope).get("origin", "another site"))
        message = f"pages of {origin} may not call this service; serve.cors_origins names those that may"
        await error_response(message, 403, "foreign_origin")(scope, receive, send)

    def _is_own(self, headers: Headers) -> bool:
        origin = headers.get("origin")
        if origin is None:
            return headers.get("sec-fetch-site") != "cross-site" or headers.get("sec-fetch-mode") == "navigate"
        return origin.lower() in self._allowed or _host_of(origin) == headers.get("host", "").lower()


def _host_of(origin: str) -> str | None:
    """Host and port of an origin; None for one that has none ("null")."""
    try:
        return urlsplit(origin).netloc.lower() or None
    except ValueError:
        return None

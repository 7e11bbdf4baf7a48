"""How large the body of a request may be and how long it may take, enforced while it is read."""

from __future__ import annotations

import asyncio
import time

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pagedvid.units import format_bytes

_CLOSE = {"Connection": "close"}
"""Sent with a refusal: the unread rest of the body would be parsed as the next request of the connection."""


class BodyLimits:
    """Reading a body raises an HTTPException: 413 beyond `max_bytes`, 408 after `max_seconds`."""

    def __init__(self, app: ASGIApp, max_bytes: int, max_seconds: float) -> None:
        self.app = app
        self._max_bytes, self._max_seconds = max_bytes, max_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI interface."""
        await self.app(scope, self._limited(scope, receive) if scope["type"] == "http" else receive, send)

    def _limited(self, scope: Scope, receive: Receive) -> Receive:
        """`receive` that counts; a size that the client announces counts at once."""
        announced = Headers(scope=scope).get("content-length", "")
        deadline = time.monotonic() + self._max_seconds
        num_bytes, has_ended = 0, False

        async def limited() -> Message:
            nonlocal num_bytes, has_ended
            if has_ended:
                return await receive()  # waits for the client to go, for as long as the response takes
            self._check_size(int(announced) if announced.isdecimal() else 0)
            try:
                message = await asyncio.wait_for(receive(), max(0.0, deadline - time.monotonic()))
            except asyncio.TimeoutError:
                detail = f"the body took more than {self._max_seconds:g} seconds, see serve.body_seconds"
                raise HTTPException(408, detail, _CLOSE) from None
            num_bytes += len(message.get("body", b""))
            has_ended = not message.get("more_body", False)
            self._check_size(num_bytes)
            return message

        return limited

    def _check_size(self, num_bytes: int) -> None:
        if num_bytes > self._max_bytes:
            most = format_bytes(self._max_bytes)
            raise HTTPException(413, f"the body is larger than {most}, the most that serve.max_body allows", _CLOSE)

"""The API key: who may call the service at all."""

from __future__ import annotations

import hmac
from collections.abc import Set
from pathlib import Path

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from pagedvid.errors import ConfigError
from pagedvid.files.text import read_text
from pagedvid.service.http.errors import error_response
from pagedvid.shown import named

MIN_KEY_CHARACTERS = 16
MAX_KEY_FILE_BYTES = 4096


def read_key_file(path: Path) -> str:
    """The key in a file: its one line. Raises ConfigError."""
    content = read_text(path, "file with the API key", MAX_KEY_FILE_BYTES)
    return check_key(content.strip(), f"the file {named(path)}")


def check_key(key: str, source: str) -> str:
    """A key that nobody guesses and that fits a header. Raises ConfigError, which does not show the key."""
    if len(key) < MIN_KEY_CHARACTERS or not (key.isascii() and key.isprintable()) or " " in key:
        raise ConfigError(
            f"{source} holds no API key: it must be one line of at least {MIN_KEY_CHARACTERS} printable ASCII "
            "characters without blanks; `openssl rand -hex 32` makes one"
        )
    return key


class KeyGuard:
    """Lets requests and WebSockets in that bring the key as OpenAI's client does, `Authorization: Bearer KEY`.

    All others get 401, except those for `open_paths`.
    """

    def __init__(self, app: ASGIApp, key: str, open_paths: Set[str]) -> None:
        """`open_paths`: paths that need no key."""
        self.app = app
        self._expected = f"Bearer {key}".encode()
        self._open_paths = open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI interface."""
        if scope["type"] == "lifespan" or scope["path"] in self._open_paths or self._has_key(Headers(scope=scope)):
            await self.app(scope, receive, send)
            return
        message = "the API key is missing or wrong; send the header `Authorization: Bearer KEY`"
        response = error_response(message, 401, "invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        await response(scope, receive, send)

    def _has_key(self, headers: Headers) -> bool:
        given = headers.getlist("authorization")
        return len(given) == 1 and hmac.compare_digest(given[0].encode("latin-1"), self._expected)

"""`stream.mp4`: the file of a session, sent while it grows."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import BinaryIO

import anyio
from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send
from typing_extensions import override

from pagedvid.service.errors import NotFound
from pagedvid.service.http.contract import SessionsLike
from pagedvid.service.http.feed import Feeds
from pagedvid.service.records import UNFINISHED

BLOCK_BYTES = 64 * 1024
LONGEST_WAIT_SECONDS = 5.0
"""For an event; then the session is looked at anyway."""


class LiveResponse(StreamingResponse):
    """A response of an async generator that is closed as soon as the client is gone, not when it is collected."""

    def __init__(self, parts: AsyncGenerator[bytes, None], media_type: str) -> None:
        # Proxies such as nginx are asked to pass parts on as they come.
        super().__init__(parts, media_type=media_type, headers={"X-Accel-Buffering": "no"})
        self._parts = parts

    @override
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI interface."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            with anyio.CancelScope(shield=True):
                await self._parts.aclose()


class GrowingFile:
    """Reads a session's recording as far as it is safe; keeps the file open, so that deleting it does no harm."""

    def __init__(self, sessions: SessionsLike, id: str) -> None:
        self._sessions, self._id = sessions, id
        self._file: BinaryIO | None = None
        self._position = self._end = self._next_chunk = 0

    def look(self) -> bool:
        """Looks how much there is to read now. False: nothing will be added. Raises NotFound."""
        may_grow = self._sessions.get(self._id).state in UNFINISHED  # first: what is recorded until then is complete
        recording = self._sessions.recording(self._id, self._next_chunk)
        if recording.chunks:
            self._next_chunk = recording.chunks[-1].index + 1
        self._end = max(self._end, recording.end)
        if self._file is None and self._end:
            self._file = recording.path.open("rb")
        return may_grow

    def read(self) -> bytes:
        """The next bytes, at most a block; b"" when all was read that is safe to read."""
        if self._file is None:
            return b""
        block = self._file.read(min(BLOCK_BYTES, self._end - self._position))
        self._position += len(block)
        return block

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()


async def growing_bytes(sessions: SessionsLike, feeds: Feeds, id: str) -> AsyncGenerator[bytes, None]:
    """The whole recording from its beginning; ends when the session has ended or is deleted."""
    file = GrowingFile(sessions, id)
    try:
        async with feeds.watching(id) as feed:
            may_grow = True
            while may_grow and not feed.is_closed:
                may_grow = await run_in_threadpool(file.look)
                while block := await run_in_threadpool(file.read):
                    yield block
                if may_grow:
                    await feed.wait(LONGEST_WAIT_SECONDS)
    except (NotFound, FileNotFoundError):
        return  # deleted meanwhile
    finally:
        file.close()

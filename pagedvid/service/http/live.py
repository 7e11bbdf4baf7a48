"""The WebSocket of a session: frames and events go out, prompts and reports of what was played come in.

Out, as text: {"type": "state" | "chunk" | "credit" | "failed" | "error", ...} with the fields of the events of these
names (events.py); first the whole session, as "session". After each "chunk" its frames follow in binary messages:
?format=jpeg   `num_frames` pictures
?format=mp4    one fragment of an mp4 file; its init segment comes in a message before the first one
In, as text: see live_messages.py.

Chunks are read from the recording one by one, when the client has taken the one before. A slow client therefore costs
no memory, and what it reports as played holds its session back.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping
from contextlib import suppress
from typing import Annotated, Any, Literal

import anyio
from fastapi import APIRouter, Query, WebSocket
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.websockets import WebSocketDisconnect

from pagedvid.errors import PagedvidError
from pagedvid.output.jpeg import jpeg
from pagedvid.service.errors import NotFound
from pagedvid.service.http.errors import first_complaint
from pagedvid.service.http.events import event_fields, event_name
from pagedvid.service.http.feed import Feed
from pagedvid.service.http.live_messages import obey, read_message
from pagedvid.service.http.schemas import SessionObject
from pagedvid.service.http.state import Service, SessionId, TheService
from pagedvid.service.records import CANCELLED, RecordedChunk, Recording
from pagedvid.service.session_events import ChunkRecorded, SessionState
from pagedvid.shown import short

logger = logging.getLogger(__name__)
router = APIRouter(prefix="/v1/sessions", tags=["sessions"])

GONE, RESTARTING, UNSUPPORTED, MALFORMED = 1000, 1012, 1003, 1008
"""Close codes of the WebSocket: session deleted, service stopping, binary message, malformed message."""
CLIENT_GONE = (WebSocketDisconnect, RuntimeError, OSError)
"""What Starlette raises when the client has ended the connection."""
MAX_REASON_BYTES = 120
"""The protocol allows 123."""
Format = Literal["jpeg", "mp4"]
FirstChunk = Annotated[int, Query(ge=0, le=10**6)]


@router.websocket("/{id}/live")
async def live(
    websocket: WebSocket, id: SessionId, service: TheService, format: Format = "jpeg", first_chunk: FirstChunk = 0
) -> None:
    """Watch and steer a session. `first_chunk`: where to begin, such as after a lost connection."""
    await run_in_threadpool(service.sessions.get, id)
    await websocket.accept()
    client = _Client(websocket, service, id, format, first_chunk)
    try:
        async with service.feeds.watching(id) as feed:
            await client.serve(feed)
    except NotFound:
        await client.tell_deleted()
    except CLIENT_GONE:
        # How watching usually ends. One of the service's own errors may be a RuntimeError, too, so it can be looked up.
        logger.debug("a viewer of session %s is gone", id, exc_info=True)


class _Client:
    """One client of one session."""

    def __init__(self, websocket: WebSocket, service: Service, id: str, format: Format, first_chunk: int) -> None:
        self._websocket, self._service, self._id, self._format = websocket, service, id, format
        self._next_chunk = first_chunk
        self._has_init = False
        self._sending = asyncio.Lock()

    async def serve(self, feed: Feed) -> None:
        """Sends and receives until either side ends the connection."""
        tasks = [asyncio.create_task(self._send_all(feed)), asyncio.create_task(self._receive_all())]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            with anyio.CancelScope(shield=True):
                await asyncio.gather(*tasks, return_exceptions=True)

    async def tell_deleted(self) -> None:
        """Says that there is no session any more, and ends the connection."""
        with suppress(*CLIENT_GONE):
            await self._say("state", event_fields(SessionState(self._id, CANCELLED)))
        await self.close(GONE, "the session was deleted")

    async def close(self, code: int, reason: str) -> None:
        """Ends the connection, unless it has ended."""
        shortened = short(reason, MAX_REASON_BYTES).encode()[:MAX_REASON_BYTES].decode(errors="ignore")
        with suppress(*CLIENT_GONE):
            await self._websocket.close(code, shortened)

    # ------------------------------------------------------------------ out

    async def _send_all(self, feed: Feed) -> None:
        sessions = self._service.sessions
        record = await run_in_threadpool(sessions.get, self._id)
        await self._say("session", SessionObject.of(record, None).model_dump())
        await self._send_chunks()
        while not feed.is_closed:
            for event in await feed.wait():
                if isinstance(event, SessionState) and event.state == CANCELLED:
                    await self.tell_deleted()
                    return
                if isinstance(event, ChunkRecorded):
                    await self._send_chunks()  # before what is told next, such as that it was the last one
                else:
                    await self._say(event_name(event), event_fields(event))
            if feed.has_lost:
                feed.has_lost = False
                state = (await run_in_threadpool(sessions.get, self._id)).state
                await self._say("state", {"id": self._id, "state": state})
            await self._send_chunks()
        await self.close(RESTARTING, "the service stops; the session goes on when it is back")

    async def _send_chunks(self) -> None:
        """Sends everything that is recorded and was not sent yet."""
        while chunks := (recording := await self._recording()).chunks:
            for chunk in chunks:
                done = ChunkRecorded(
                    self._id, chunk.index, chunk.first_frame, chunk.num_frames, chunk.first_frame + chunk.num_frames
                )
                await self._say("chunk", event_fields(done))
                if self._format == "mp4":
                    await self._send_fragment(recording, chunk)
                else:
                    await self._send_pictures(chunk)
                self._next_chunk = chunk.index + 1

    async def _recording(self) -> Recording:
        return await run_in_threadpool(self._service.sessions.recording, self._id, self._next_chunk)

    async def _send_fragment(self, recording: Recording, chunk: RecordedChunk) -> None:
        if not self._has_init:
            await self._send_bytes(await run_in_threadpool(_part, recording, 0, recording.init_bytes))
            self._has_init = True
        await self._send_bytes(await run_in_threadpool(_part, recording, chunk.start, chunk.end))

    async def _send_pictures(self, chunk: RecordedChunk) -> None:
        frames = await run_in_threadpool(self._service.sessions.frames, self._id, chunk.index)
        for frame in frames:
            await self._send_bytes(await run_in_threadpool(jpeg, frame))

    async def _say(self, kind: str, fields: Mapping[str, Any]) -> None:
        async with self._sending:
            await self._websocket.send_text(json.dumps({"type": kind, **fields}))

    async def _send_bytes(self, content: bytes) -> None:
        async with self._sending:
            await self._websocket.send_bytes(content)

    # ------------------------------------------------------------------ in

    async def _receive_all(self) -> None:
        while True:
            received = await self._websocket.receive()
            if received["type"] == "websocket.disconnect":
                return
            text = received.get("text")
            if text is None:
                await self.close(UNSUPPORTED, "messages are JSON text, not bytes")
                return
            if not await self._take(text):
                return

    async def _take(self, text: str) -> bool:
        """Obeys a message; False when it is malformed and the connection was closed."""
        try:
            message = read_message(text)
        except ValidationError as error:
            complaint, param = first_complaint(error.errors())
            await self._say("error", {"message": complaint, "param": param, "code": "malformed"})
            await self.close(MALFORMED, complaint)
            return False
        try:
            await run_in_threadpool(obey, message, self._service.sessions, self._service.checks, self._id)
        except NotFound:
            raise
        except PagedvidError as error:
            await self._say("error", {"message": str(error), "param": None, "code": type(error).__name__})
        return True


def _part(recording: Recording, start: int, end: int) -> bytes:
    """Bytes of the recording. Raises NotFound when it was deleted meanwhile."""
    try:
        with recording.path.open("rb") as file:
            file.seek(start)
            return file.read(end - start)
    except FileNotFoundError:
        raise NotFound("the session was deleted") from None

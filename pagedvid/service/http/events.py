"""Server-sent events: what happens to a session, or to all of them.

A client that connects is told first how things stand. It may come back with the header `Last-Event-ID`, as browsers do
by themselves; it is then told of every chunk since, because the id of an event is the number of its chunk.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from starlette.concurrency import run_in_threadpool

from pagedvid.service.errors import NotFound
from pagedvid.service.http.contract import SessionsLike
from pagedvid.service.http.feed import Feeds
from pagedvid.service.records import CANCELLED, SessionRecord
from pagedvid.service.session_events import ChunkRecorded, CreditChanged, SessionEvent, SessionFailed, SessionState

MAX_TOLD = 100
"""Sessions whose state is told to a client that listens to all."""
HEARTBEAT = b": still here\n\n"


def event_name(event: SessionEvent) -> str:
    """The name of an event: `state`, `chunk`, `credit` or `failed`."""
    names = {SessionState: "state", ChunkRecorded: "chunk", CreditChanged: "credit", SessionFailed: "failed"}
    return names[type(event)]


def event_fields(event: SessionEvent) -> dict[str, Any]:
    """What an event says, as JSON."""
    if isinstance(event, SessionFailed):
        return {"id": event.id, "error": {"code": event.error.code, "message": event.error.message}}
    return dict(vars(event))


def standing(record: SessionRecord) -> dict[str, Any]:
    """How a session stands, as a `state` event says it to somebody who has just come."""
    return {"id": record.id, "state": record.state, "frames_done": record.frames_done}


def written(name: str, fields: Mapping[str, Any], event_id: int | None = None) -> bytes:
    """One event as it is sent: its name, its data as JSON, and its id if it has one."""
    first = "" if event_id is None else f"id: {event_id}\n"
    return f"{first}event: {name}\ndata: {json.dumps(fields)}\n\n".encode()


async def session_events(
    sessions: SessionsLike, feeds: Feeds, id: str, last_chunk: int | None, heartbeat_seconds: float
) -> AsyncGenerator[bytes, None]:
    """The events of one session until it is deleted. `last_chunk`: the last that the client knows of."""
    next_chunk = None if last_chunk is None else last_chunk + 1
    try:
        async with feeds.subscribed(id) as feed:
            feed.has_lost = True  # what was before it listened
            while not feed.is_closed:
                events: list[SessionEvent] = []
                if feed.has_lost:
                    feed.has_lost = False
                    yield written("state", standing(await run_in_threadpool(sessions.get, id)))
                    events += await run_in_threadpool(_chunks_from, sessions, id, next_chunk)
                events = events or await feed.wait(heartbeat_seconds)
                if not events:
                    yield HEARTBEAT
                for event in events:
                    if isinstance(event, ChunkRecorded):
                        if next_chunk is not None and event.chunk_index < next_chunk:
                            continue  # told before
                        next_chunk = event.chunk_index + 1
                        yield written("chunk", event_fields(event), event.chunk_index)
                    else:
                        yield written(event_name(event), event_fields(event))
                    if isinstance(event, SessionState) and event.state == CANCELLED:
                        return
    except NotFound:
        return  # deleted meanwhile


def _chunks_from(sessions: SessionsLike, id: str, next_chunk: int | None) -> list[SessionEvent]:
    """The recorded chunks from `next_chunk` on, as events; none for a client that knows of none."""
    chunks = () if next_chunk is None else sessions.recording(id, next_chunk).chunks
    return [
        ChunkRecorded(id, chunk.index, chunk.first_frame, chunk.num_frames, chunk.first_frame + chunk.num_frames)
        for chunk in chunks
    ]


async def all_events(sessions: SessionsLike, feeds: Feeds, heartbeat_seconds: float) -> AsyncGenerator[bytes, None]:
    """The events of all sessions; first the states of the newest ones."""
    async with feeds.subscribed(None) as feed:
        feed.has_lost = True
        while not feed.is_closed:
            if feed.has_lost:
                feed.has_lost = False
                for record in (await run_in_threadpool(sessions.list, MAX_TOLD)).records:
                    yield written("state", standing(record))
            events = await feed.wait(heartbeat_seconds)
            for event in events:
                yield written(event_name(event), event_fields(event))
            if not events:
                yield HEARTBEAT

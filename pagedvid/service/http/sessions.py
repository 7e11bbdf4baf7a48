"""The API of sessions: videos that are steered and watched while they are made."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Request
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

from pagedvid.service.http.create_body import documented_body, read_body
from pagedvid.service.http.events import session_events
from pagedvid.service.http.schemas import (
    CreateSession,
    DeletedSession,
    ExtendSession,
    ForkedSessions,
    ForkSession,
    ReportPlayed,
    SessionList,
    SessionObject,
    SetPrompt,
)
from pagedvid.service.http.state import ERRORS, After, Limit, Order, Service, SessionId, TheService
from pagedvid.service.http.stream import LiveResponse, growing_bytes
from pagedvid.service.records import NewFork, NewSession, Reference, SessionRecord

router = APIRouter(prefix="/v1/sessions", tags=["sessions"], responses=ERRORS)

MAX_CHUNK_DIGITS = 9


def _shown(service: Service, record: SessionRecord) -> SessionObject:
    return SessionObject.of(record, service.sessions.credit_seconds(record.id) if record.is_live else None)


@router.post("", openapi_extra=documented_body(CreateSession))
async def create_session(request: Request, service: TheService) -> SessionObject:
    """Accepts a session; it goes on even if the service is restarted."""
    body, reference = await read_body(request, CreateSession)
    return await run_in_threadpool(_create, service, body, reference)


def _create(service: Service, body: CreateSession, reference: Reference | None) -> SessionObject:
    checks = service.checks
    checks.reference(reference)
    speed = body.live_frames_per_second
    if body.live and speed is None:
        speed = service.settings.model.frames_per_second
    num_frames = checks.num_frames(body.num_frames)
    prompt, later_prompts = checks.prompts(body.prompt, body.prompts, num_frames, reference is not None)
    new = NewSession(
        prompt,
        num_frames,
        checks.seed(body.seed),
        live_frames_per_second=speed,
        priority=body.priority,
        kind="session",
        later_prompts=later_prompts,
        reference=reference,
    )
    return _shown(service, service.sessions.create(new))


@router.get("")
def list_sessions(
    service: TheService,
    limit: Limit = 20,
    after: After = None,
    order: Order = "desc",
    kind: Literal["video", "session"] | None = None,
) -> SessionList:
    """Sessions, and videos unless `kind` says otherwise, by time of creation; the next page is `after` the last."""
    page = service.sessions.list(limit, after, newest_first=order == "desc", kind=kind)
    data = [_shown(service, record) for record in page.records]
    first, last = (data[0].id, data[-1].id) if data else (None, None)
    return SessionList(data=data, first_id=first, last_id=last, has_more=page.has_more)


@router.get("/{id}")
def get_session(id: SessionId, service: TheService) -> SessionObject:
    """How a session stands."""
    return _shown(service, service.sessions.get(id))


@router.delete("/{id}")
def delete_session(id: SessionId, service: TheService) -> DeletedSession:
    """Stops a session in any state, and removes all of it."""
    service.sessions.delete(id)
    return DeletedSession(id=id)


@router.post("/{id}/prompt")
def set_prompt(id: SessionId, body: SetPrompt, service: TheService) -> SessionObject:
    """Another prompt from the next chunk on."""
    prompt = service.checks.prompt(body.prompt)
    return _shown(service, service.sessions.prompt(id, prompt, recache=body.recache))


@router.post("/{id}/pause")
def pause_session(id: SessionId, service: TheService) -> SessionObject:
    """Pauses a session at its next chunk."""
    return _shown(service, service.sessions.pause(id))


@router.post("/{id}/resume")
def resume_session(id: SessionId, service: TheService) -> SessionObject:
    """Goes on with a paused session."""
    return _shown(service, service.sessions.resume(id))


@router.post("/{id}/fork")
def fork_session(id: SessionId, body: ForkSession, service: TheService) -> ForkedSessions:
    """New sessions that share this one's history up to its next chunk, each with its own prompt and seed."""
    checks = service.checks
    checks.num_continuations(len(body.continuations))
    forks = [
        NewFork(
            checks.optional_prompt(one.prompt),
            one.seed,
            None if one.num_frames is None else checks.num_frames(one.num_frames),
        )
        for one in body.continuations
    ]
    return ForkedSessions(data=[_shown(service, record) for record in service.sessions.fork(id, forks)])


@router.post("/{id}/extend")
def extend_session(id: SessionId, body: ExtendSession, service: TheService) -> SessionObject:
    """A new total number of frames, also for a session that is complete."""
    return _shown(service, service.sessions.extend(id, service.checks.num_frames(body.num_frames)))


@router.post("/{id}/played")
def report_played(id: SessionId, body: ReportPlayed, service: TheService) -> SessionObject:
    """How far a live session was watched, from a viewer that reads `stream.mp4`. Its credit is counted from there."""
    service.sessions.played(id, body.num_frames)
    return _shown(service, service.sessions.get(id))


def _streamed(kind: str, description: str) -> dict[int | str, dict[str, Any]]:
    return {200: {"description": description, "content": {kind: {"schema": {"type": "string", "format": "binary"}}}}}


_VIDEO = _streamed("video/mp4", "A fragmented mp4 that ends with the session.")
EVENTS = _streamed("text/event-stream", "Events: state, chunk, credit, failed.")


@router.get("/{id}/stream.mp4", response_class=StreamingResponse, responses=_VIDEO)
async def stream_session(id: SessionId, service: TheService) -> StreamingResponse:
    """The video from its beginning, sent while it is made."""
    await run_in_threadpool(service.sessions.get, id)
    return LiveResponse(growing_bytes(service.sessions, service.feeds, id), media_type="video/mp4")


@router.get("/{id}/events", response_class=StreamingResponse, responses=EVENTS)
async def follow_session(
    id: SessionId,
    service: TheService,
    last_event_id: Annotated[str | None, Header(description="Number of the last chunk that is known.")] = None,
) -> StreamingResponse:
    """What happens to a session, as server-sent events; first its state."""
    await run_in_threadpool(service.sessions.get, id)
    is_number = last_event_id is not None and last_event_id.isascii() and last_event_id.isdecimal()
    last_chunk = int(last_event_id[:MAX_CHUNK_DIGITS]) if last_event_id and is_number else None
    heartbeat_seconds = service.settings.limits.heartbeat_seconds
    events = session_events(service.sessions, service.feeds, id, last_chunk, heartbeat_seconds)
    return LiveResponse(events, media_type="text/event-stream")

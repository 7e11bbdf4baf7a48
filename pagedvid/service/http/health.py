"""How the service is: for those who start and watch it, and for its page."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from pagedvid.service.http.errors import RequestError
from pagedvid.service.http.events import all_events
from pagedvid.service.http.metrics import CONTENT_TYPE
from pagedvid.service.http.sessions import EVENTS
from pagedvid.service.http.state import ERRORS, Service, TheService
from pagedvid.service.http.stream import LiveResponse
from pagedvid.service.stats import WORKING, PoolStats, WorkerStats

router = APIRouter(tags=["service"], responses=ERRORS)

_TEXT: dict[int | str, dict[str, Any]] = {
    200: {"description": "Figures for Prometheus.", "content": {"text/plain": {"schema": {"type": "string"}}}}
}


class Status(BaseModel):
    """How the service is, in one word: "ok" or "ready"."""

    status: str


class ModelObject(BaseModel):
    """The model that makes the videos."""

    name: str
    frames_per_second: float
    width: int | None
    """Pixels, as the height; null where only the first chunk tells."""
    height: int | None
    default_num_frames: int
    takes_frames: bool
    """Whether a session can go on from a picture or a video."""
    actions: list[str]
    """Words that steer a session while it is made: the prompt "left 12" takes one for so many frames."""
    example_prompt: str
    """One that the model understands; empty: any English will do."""


class PoolSession(BaseModel):
    """What one session takes of the pool."""

    id: str
    state: str
    own_pages: int
    shared_pages: int
    host_bytes: int
    credit_seconds: float | None


class PoolObject(BaseModel):
    """The pool at this moment."""

    num_pages: int
    page_bytes: int
    free_pages: int
    reserved_pages: int
    used_pages: int
    swapped_bytes: int
    host_bytes: int
    stored_bytes: int
    bf16_bytes: int
    frames_per_second: float
    """Output frames that all sessions together got in the last seconds."""
    sessions: list[PoolSession]


@router.get("/healthz")
async def health() -> Status:
    """The process answers."""
    return Status(status="ok")


@router.get("/readyz")
def ready(service: TheService) -> Status:
    """The worker takes work; 503 while its engine is built, and when it is no more."""
    _working(service)
    return Status(status="ready")


@router.get("/metrics", response_class=Response, responses=_TEXT)
def metrics(service: TheService) -> Response:
    """Figures for Prometheus."""
    return Response(service.metrics.text(), headers={"Content-Type": CONTENT_TYPE})


@router.get("/v1/model")
async def model(service: TheService) -> ModelObject:
    """The model that makes the videos, and how it can be steered."""
    served = service.settings.model
    return ModelObject(**{name: getattr(served, name) for name in ModelObject.model_fields})


@router.get("/v1/pool")
def pool(service: TheService) -> PoolObject:
    """The pages of the pool, and what each session takes of them."""
    stats, pool = _working(service)
    fields = {name: getattr(pool, name) for name in PoolObject.model_fields.keys() & vars(pool).keys()}
    sessions = [
        PoolSession(**{name: getattr(video, name) for name in PoolSession.model_fields}) for video in stats.videos
    ]
    speed = service.metrics.observer.frames_per_second()
    return PoolObject(**fields, frames_per_second=speed, sessions=sessions)


@router.get("/v1/events", response_class=StreamingResponse, responses=EVENTS)
async def follow_all(service: TheService) -> StreamingResponse:
    """What happens to all sessions, as server-sent events; first the states of the newest ones."""
    events = all_events(service.sessions, service.feeds, service.settings.limits.heartbeat_seconds)
    return LiveResponse(events, media_type="text/event-stream")


def _working(service: Service) -> tuple[WorkerStats, PoolStats]:
    """Raises RequestError with status 503 while there is no engine that works."""
    stats = service.sessions.stats()
    if stats.state != WORKING or stats.pool is None:
        why = f": {stats.reason}" if stats.reason else ""
        raise RequestError(f"the worker is {stats.state}{why}; ask again later", None, "not_ready", 503)
    return stats, stats.pool

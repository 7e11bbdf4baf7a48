"""What the endpoints share, and the parameters that many of them have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import Depends, Path, Query
from starlette.requests import HTTPConnection

from pagedvid.service.http.checks import Checks
from pagedvid.service.http.contract import SessionsLike
from pagedvid.service.http.feed import Feeds
from pagedvid.service.http.metrics import Metrics
from pagedvid.service.http.schemas import ID_PATTERN, ErrorObject
from pagedvid.service.http.settings import ServeSettings


@dataclass(frozen=True)
class Service:
    """The parts of one app."""

    sessions: SessionsLike
    settings: ServeSettings
    checks: Checks
    feeds: Feeds
    metrics: Metrics


def _service(connection: HTTPConnection) -> Service:
    service: Service = connection.app.state.service
    return service


TheService = Annotated[Service, Depends(_service)]
SessionId = Annotated[str, Path(pattern=ID_PATTERN)]
VideoId = Annotated[str, Path(pattern=ID_PATTERN.replace("(video|session)", "video"))]
Limit = Annotated[int, Query(ge=1, le=100)]
After = Annotated[str | None, Query(pattern=ID_PATTERN)]
Order = Literal["asc", "desc"]

ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorObject, "description": "The request cannot be carried out; the message says what to change."},
    "5XX": {"model": ErrorObject, "description": "Internal error."},
}
"""What every endpoint may answer."""

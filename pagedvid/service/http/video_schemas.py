"""The JSON of OpenAI's video API, as its official client reads and writes it."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field

from pagedvid.service.http.schemas import Body, Prompt, Prompts, Seed, SessionErrorObject, StartSeconds
from pagedvid.service.http.settings import ServedModel
from pagedvid.service.records import CANCELLED, COMPLETED, FAILED, QUEUED, SessionRecord

MAX_SECONDS = 100_000


def _as_number(value: Any) -> Any:
    """Seconds as OpenAI's client sends them: a number in a string. pydantic says what is wrong with anything else."""
    return value.strip() if isinstance(value, str) else value


Seconds = Annotated[
    float,
    BeforeValidator(_as_number),
    Field(gt=0, le=MAX_SECONDS, allow_inf_nan=False, description='Length of the video, a number or "4".'),
]


class CreateVideo(Body):
    """A new video, with `prompt` or with `prompts`."""

    prompt: Prompt | None = None
    prompts: Prompts | None = Field(
        None, description="Not in OpenAI's API: several prompts by time; in a form, as JSON."
    )
    model: str | None = Field(None, description="The model that is served, if any is named.")
    seconds: Seconds | None = None
    size: str | None = Field(None, description="The size of the model's frames, if any is named.")
    seed: Annotated[Seed, Field(strict=False)] | None = Field(None, description="Not in OpenAI's API; null = any.")
    start_seconds: StartSeconds | None = None


class RemixVideo(Body):
    """A video that goes on from another one with another prompt."""

    prompt: Prompt
    seconds: Seconds | None = Field(None, description="Not in OpenAI's API: length of the whole video.")


class VideoObject(BaseModel):
    """A video."""

    id: str
    object: Literal["video"] = "video"
    model: str
    status: Literal["queued", "in_progress", "completed", "failed"]
    progress: int
    prompt: str
    seconds: str
    size: str | None
    created_at: int
    completed_at: int | None
    expires_at: int | None = None
    error: SessionErrorObject | None
    remixed_from_video_id: str | None

    @classmethod
    def of(cls, record: SessionRecord, model: ServedModel) -> VideoObject:
        """The JSON of a video."""
        size = f"{record.width}x{record.height}" if record.width and record.height else model.size
        error = record.error and SessionErrorObject(code=record.error.code, message=record.error.message)
        return cls(
            id=record.id,
            model=model.name,
            status=_status(record.state),
            progress=100 if record.state == COMPLETED else min(99, math.floor(100 * record.progress)),
            prompt=record.prompt,
            seconds=f"{model.seconds(record.num_frames, record.goes_on):.6g}",
            size=size,
            created_at=math.floor(record.created_at),
            completed_at=None if record.completed_at is None else math.floor(record.completed_at),
            error=error or None,
            remixed_from_video_id=record.source_id,
        )


class VideoList(BaseModel):
    """A page of videos."""

    object: Literal["list"] = "list"
    data: list[VideoObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class DeletedVideo(BaseModel):
    """All of the video is gone."""

    id: str
    object: Literal["video.deleted"] = "video.deleted"
    deleted: bool = True


def _status(state: str) -> Literal["queued", "in_progress", "completed", "failed"]:
    """OpenAI's word for a state; it knows no pause."""
    if state == QUEUED:
        return "queued"
    if state == COMPLETED:
        return "completed"
    return "failed" if state in (FAILED, CANCELLED) else "in_progress"

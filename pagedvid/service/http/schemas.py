"""The JSON of sessions, and of what is asked of them. What OpenAI's API prescribes is in video_schemas.py."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

from pagedvid.config.sections import MAX_FRAMES, MAX_SEED
from pagedvid.engine.requests import MOST_LIVE_SPEED
from pagedvid.output.given_files import MOST_START_SECONDS
from pagedvid.service.records import SessionRecord

ID_PATTERN = r"^(video|session)_[A-Za-z0-9_-]{8,64}$"
MAX_PRIORITY = 1000
MAX_PROMPT_SECONDS = 1_000_000

Prompt = Annotated[str, StringConstraints(min_length=1)]
"""The service's own limit on its length comes on top (checks.py)."""
NumFrames = Annotated[int, Field(ge=1, le=MAX_FRAMES, strict=True)]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED, strict=True)]


class Body(BaseModel):
    """A request: what it does not know is refused, not ignored."""

    model_config = ConfigDict(extra="forbid")


class TimedPrompt(Body):
    """A prompt and the time from which it counts."""

    at_seconds: float = Field(
        ge=0, le=MAX_PROMPT_SECONDS, allow_inf_nan=False, strict=True, description="Of the video; first 0."
    )
    prompt: Prompt
    recache: bool = Field(False, description="Store the kept chunks again under it; not the first.", strict=True)


def _as_list(value: Any) -> Any:
    """A list as a form sends it: JSON. pydantic says what is wrong with anything else."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


Prompts = Annotated[list[TimedPrompt], Field(min_length=1, max_length=1000), BeforeValidator(_as_list)]
"""In place of one prompt: each takes over at the first chunk that begins at or after its time. In a form, as JSON."""
StartSeconds = Annotated[
    float,
    Field(
        ge=0,
        le=MOST_START_SECONDS,
        allow_inf_nan=False,
        strict=True,
        description="Where in a video given as input_reference the new one begins; null = at its end.",
    ),
]


class CreateSession(Body):
    """A new session, with `prompt` or with `prompts`. With a speed somebody watches it while it is made."""

    prompt: Prompt | None = None
    prompts: Prompts | None = Field(None, description="Several, by time; then no other prompt can be given later.")
    num_frames: NumFrames | None = Field(None, description="Frames of the model; null = the service's default.")
    seed: Seed | None = Field(None, description="null = any.")
    live: bool = Field(False, description="Whether a viewer watches at the video's own speed.", strict=True)
    live_frames_per_second: float | None = Field(
        None, gt=0, le=MOST_LIVE_SPEED, allow_inf_nan=False, description="The viewer's speed, if it is another one."
    )
    start_seconds: StartSeconds | None = None
    priority: int = Field(0, ge=-MAX_PRIORITY, le=MAX_PRIORITY, strict=True)


class SetPrompt(Body):
    """Another prompt from the next chunk on."""

    prompt: Prompt
    recache: bool = Field(False, description="Store the kept chunks again under the new prompt.", strict=True)


class ForkOne(Body):
    """One continuation; what is left out is as in the source."""

    prompt: Prompt | None = None
    seed: Seed | None = None
    num_frames: NumFrames | None = Field(None, description="Of the whole video, shared frames included.")


class ForkSession(Body):
    """Continuations that share the history up to the next chunk."""

    continuations: list[ForkOne] = Field(min_length=1, max_length=1000)


class ExtendSession(Body):
    """A new total number of frames."""

    num_frames: NumFrames


class ReportPlayed(Body):
    """So many frames of the video were shown."""

    num_frames: int = Field(ge=0, le=1000 * MAX_FRAMES, strict=True, description="From the first one of the video on.")


class LaterPromptObject(BaseModel):
    """A prompt that takes over on the way."""

    first_frame: int
    prompt: str
    recache: bool


class SessionErrorObject(BaseModel):
    """Why a session failed."""

    code: str
    message: str


class SessionObject(BaseModel):
    """A session."""

    id: str
    object: Literal["session"] = "session"
    kind: Literal["video", "session"]
    state: Literal["queued", "in_progress", "paused", "completed", "failed", "cancelled"]
    pause_reason: str | None
    prompt: str
    later_prompts: list[LaterPromptObject]
    num_frames: int
    frames_done: int
    chunks_done: int
    num_chunks: int
    seed: int
    created_at: float
    completed_at: float | None
    error: SessionErrorObject | None
    source_id: str | None
    priority: int
    live: bool
    live_frames_per_second: float | None
    frames_per_second: float
    width: int | None
    height: int | None
    stored_bytes: int
    bf16_bytes: int
    credit_seconds: float | None

    @classmethod
    def of(cls, record: SessionRecord, credit_seconds: float | None) -> SessionObject:
        """The JSON of a session."""
        fields = {name: getattr(record, name) for name in cls.model_fields.keys() & vars(record).keys()}
        fields["error"] = record.error and SessionErrorObject(code=record.error.code, message=record.error.message)
        fields["later_prompts"] = [LaterPromptObject(**asdict(later)) for later in record.later_prompts]
        return cls(**{**fields, "live": record.is_live, "credit_seconds": credit_seconds})


class SessionList(BaseModel):
    """A page of sessions; the next one is `after` its `last_id`."""

    object: Literal["list"] = "list"
    data: list[SessionObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class ForkedSessions(BaseModel):
    """The continuations, in the order in which they were asked for."""

    object: Literal["list"] = "list"
    data: list[SessionObject]


class DeletedSession(BaseModel):
    """All of the session is gone."""

    id: str
    object: Literal["session.deleted"] = "session.deleted"
    deleted: bool = True


class ErrorDetails(BaseModel):
    """What is wrong."""

    message: str
    type: str
    param: str | None
    code: str | None
    numbers: dict[str, int] | None = Field(None, description="What is full and what is allowed, with status 429.")


class ErrorObject(BaseModel):
    """An error, in OpenAI's form."""

    error: ErrorDetails

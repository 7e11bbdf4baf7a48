"""What a client may say on the WebSocket of a session: JSON messages by `type`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from pagedvid.service.http.checks import Checks
from pagedvid.service.http.contract import SessionsLike
from pagedvid.service.http.schemas import Body, NumFrames, ReportPlayed, SetPrompt


class PromptMessage(SetPrompt):
    """Another prompt from the next chunk on."""

    type: Literal["prompt"]


class PauseMessage(Body):
    """Pause at the next chunk."""

    type: Literal["pause"]


class ResumeMessage(Body):
    """Go on."""

    type: Literal["resume"]


class PlayedMessage(ReportPlayed):
    """So many frames of the video were shown."""

    type: Literal["played"]


class ExtendMessage(Body):
    """A new total number of frames."""

    type: Literal["extend"]
    num_frames: NumFrames


Message = PromptMessage | PauseMessage | ResumeMessage | PlayedMessage | ExtendMessage
_READER: TypeAdapter[Message] = TypeAdapter(Annotated[Message, Field(discriminator="type")])


def read_message(text: str) -> Message:
    """The message that a client sent as JSON text. Raises pydantic's ValidationError."""
    return _READER.validate_json(text)


def obey(message: Message, sessions: SessionsLike, checks: Checks, id: str) -> None:
    """Does what a message asks. Raises what the sessions raise, and RequestError."""
    if isinstance(message, PromptMessage):
        sessions.prompt(id, checks.prompt(message.prompt), recache=message.recache)
    elif isinstance(message, PauseMessage):
        sessions.pause(id)
    elif isinstance(message, ResumeMessage):
        sessions.resume(id)
    elif isinstance(message, PlayedMessage):
        sessions.played(id, message.num_frames)
    else:
        sessions.extend(id, checks.num_frames(message.num_frames))

"""What is told about sessions while they go on, as plain data. Those who listen are called by announcer.py."""

from __future__ import annotations

from dataclasses import dataclass

from pagedvid.service.records import SessionError


@dataclass(frozen=True)
class SessionState:
    """A session is in another state now."""

    id: str
    state: str


@dataclass(frozen=True)
class ChunkRecorded:
    """A chunk can be read from the recording."""

    id: str
    chunk_index: int
    first_frame: int
    num_frames: int
    frames_done: int
    """Frames of all chunks so far."""


@dataclass(frozen=True)
class CreditChanged:
    """How long a live session's viewers can play on with what is recorded; negative: they are waiting."""

    id: str
    credit_seconds: float


@dataclass(frozen=True)
class SessionFailed:
    """A session ended without its remaining frames."""

    id: str
    error: SessionError


SessionEvent = SessionState | ChunkRecorded | CreditChanged | SessionFailed

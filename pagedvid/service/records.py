"""Sessions as plain data: what a caller asks for, and how a session stands. What is told about it is in
session_events.py.

A session is one video or live client: its request, its stream, its frames. Frames that were recorded are output frames,
as a viewer sees them; `num_frames` of a request counts the model's (latent) frames, as everywhere else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pagedvid.engine.requests import LaterPrompt
from pagedvid.output.given_files import IMAGE, START, VIDEO

KINDS = ("video", "session")
"""A video is made for someone who fetches it later, a session for someone who steers it. Nothing else differs."""

QUEUED = "queued"
"""Accepted; it has no frames yet."""
IN_PROGRESS = "in_progress"
PAUSED = "paused"
"""By its user, or because its viewers went away; see `SessionRecord.pause_reason`."""
COMPLETED = "completed"
"""All frames are recorded. It can be forked and extended."""
FAILED = "failed"
"""See `SessionRecord.error`. Its frames up to then stay until it is deleted."""
CANCELLED = "cancelled"
"""Told once when a session is deleted; no record is in this state."""

STATES = (QUEUED, IN_PROGRESS, PAUSED, COMPLETED, FAILED, CANCELLED)
UNFINISHED = (QUEUED, IN_PROGRESS, PAUSED)

PAUSED_BY_USER, PAUSED_WITHOUT_VIEWER = "user", "no_viewer"


@dataclass(frozen=True)
class Reference:
    """A file that a session goes on from."""

    kind: str
    """"image" or "video"."""
    content: bytes = field(repr=False)
    start_seconds: float | None = None
    """Where in a video the session begins; None: at its end."""

    def inputs(self, name: str) -> dict[str, Any]:
        """As inputs of a request (output/given_frames.py); `name`: of the file."""
        return {self.kind: name} if self.start_seconds is None else {self.kind: name, START: self.start_seconds}


@dataclass(frozen=True)
class NewSession:
    """What a caller asks for. Its values are checked by the engine's own request (engine/requests.py)."""

    prompt: str
    num_frames: int
    """The model's frames, rounded up to whole chunks by the engine; surplus frames are cut off."""
    seed: int = 0
    live_frames_per_second: float | None = None
    """Speed at which a viewer plays it while it is made; None: nobody waits for it."""
    priority: int = 0
    inputs: Mapping[str, Any] = field(default_factory=dict)
    """What the model takes in addition to the prompt: plain JSON values, files as paths that the service chose."""
    kind: str = "video"
    """One of `KINDS`; it is the beginning of the id."""
    later_prompts: tuple[LaterPrompt, ...] = ()
    """Those to come after `prompt`, by the model's frames. A session with any takes no other prompts."""
    reference: Reference | None = None
    """It is kept with the session, whose inputs name it."""

    @property
    def is_live(self) -> bool:
        """Whether someone watches while it is made."""
        return self.live_frames_per_second is not None


@dataclass(frozen=True)
class NewFork:
    """A session that goes on from another one's history. What is None is as in the source."""

    prompt: str | None = None
    seed: int | None = None
    num_frames: int | None = None
    """Of the whole video, shared frames included. None: as the source's; of a completed source: twice as many, since
    none of its own is left to make."""
    kind: str | None = None


@dataclass(frozen=True)
class SessionError:
    """Why a session failed."""

    code: str
    """Name of the error's class, such as "ModelError"."""
    message: str


@dataclass(frozen=True)
class SessionRecord:
    """How a session stands; a copy that does not change any more."""

    id: str
    kind: str
    state: str
    """One of `STATES`."""
    pause_reason: str | None
    """`PAUSED_BY_USER`, `PAUSED_WITHOUT_VIEWER`, or None for one that is not paused."""
    prompt: str
    """The present one; the first one where others are to come."""
    num_frames: int
    """The model's frames, see `NewSession`."""
    frames_done: int
    """Output frames that are recorded."""
    chunks_done: int
    num_chunks: int
    """That it will have."""
    seed: int
    created_at: float
    """Unix time in seconds, as all times here."""
    completed_at: float | None
    """When it was completed or failed."""
    error: SessionError | None
    source_id: str | None
    """The session that it was forked from, which may be deleted by now."""
    shares_history: bool
    """Whether it goes on from frames that its source had."""
    priority: int
    inputs: Mapping[str, Any]
    """See `NewSession`."""
    live_frames_per_second: float | None
    frames_per_second: float
    """Speed of the recorded video."""
    width: int | None
    """Pixels of the recorded video; None before the first chunk."""
    height: int | None
    init_bytes: int
    """Length of the init segment of its video; 0 before the first chunk."""
    stored_bytes: int
    """The most that its stream has held."""
    bf16_bytes: int
    """The same tokens as dense BF16."""
    later_prompts: tuple[LaterPrompt, ...] = ()
    """See `NewSession`; those that have taken over already are among them."""

    @property
    def is_live(self) -> bool:
        """Whether someone watches while it is made."""
        return self.live_frames_per_second is not None

    @property
    def reference_kind(self) -> str | None:
        """Of the file that it goes on from, "image" or "video"; None: there is none."""
        return next((kind for kind in (IMAGE, VIDEO) if kind in self.inputs), None)

    @property
    def goes_on(self) -> bool:
        """Whether it goes on from a file, which gives the frames before its first one."""
        return self.reference_kind is not None

    @property
    def progress(self) -> float:
        """Share of its chunks that are done, 0 to 1."""
        return min(1.0, self.chunks_done / self.num_chunks)


@dataclass(frozen=True)
class SessionPage:
    """Part of a list of sessions."""

    records: tuple[SessionRecord, ...]
    has_more: bool
    """Whether more follow; the next page is `after` the last of these."""


@dataclass(frozen=True)
class RecordedChunk:
    """Where a chunk is in its session's file: bytes [start, end)."""

    index: int
    first_frame: int
    """Output frames before it."""
    num_frames: int
    start: int
    end: int


@dataclass(frozen=True)
class Recording:
    """A session's video so far: a fragmented mp4 file that only grows. Whoever has it open may read on after the
    session was deleted."""

    path: Path
    init_bytes: int
    """Length of the init segment, with which the file begins; 0 before the first chunk."""
    chunks: tuple[RecordedChunk, ...]
    """From the one that was asked for; one fragment each."""

    @property
    def end(self) -> int:
        """Bytes that may be read: all that is recorded."""
        return self.chunks[-1].end if self.chunks else self.init_bytes


@dataclass(frozen=True)
class VideoFormat:
    """What all recordings have in common."""

    frames_per_second: float
    frames_per_chunk: int
    """The model's frames of one chunk."""
    scale: int = 1
    """Enlargement of frames in files."""


@dataclass(frozen=True)
class SessionLimits:
    """How much the service accepts, and when it waits for its viewers."""

    max_queued: int = 100
    max_live: int = 16
    """Live sessions that have not ended, paused ones included."""
    max_ahead_seconds: float = 10.0
    """A live session that is further ahead of its viewers waits until half of it is played."""
    grace_seconds: float = 30.0
    """A live session without viewers is paused after this time."""
    checkpoint_chunks: int = 8
    """Chunks between two checkpoints of an unfinished session; after a crash at most as many are made again."""
    verb_seconds: float = 60.0
    """The longest that a verb waits for the worker."""

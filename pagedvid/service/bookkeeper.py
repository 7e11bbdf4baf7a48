"""What each event of the worker means for its session. Runs on the recorder's thread, between nothing else."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable

from pagedvid.engine.failures import presentable
from pagedvid.engine.states import FINISHED, RUNNING
from pagedvid.service.chunk_writer import ChunkWriter
from pagedvid.service.events import ChunkEvent, Event, FailureEvent, LostEvent, RebuiltEvent, RefusedEvent, VideoEvent
from pagedvid.service.parts import Parts
from pagedvid.service.records import COMPLETED, FAILED, IN_PROGRESS, QUEUED, SessionError, SessionRecord
from pagedvid.service.session_events import ChunkRecorded, CreditChanged, SessionState

logger = logging.getLogger(__name__)


class Bookkeeper:
    """Turns the worker's events into recorded chunks and states of sessions."""

    def __init__(
        self,
        parts: Parts,
        on_end: Callable[[str], None],
        on_progress: Callable[[str], None],
        on_lost: Callable[[Iterable[str]], None],
    ) -> None:
        """`on_end`: is told when the worker has finished a session. `on_progress`: of each chunk. `on_lost`: of the
        sessions that no worker has any more."""
        self._parts, self._on_end, self._on_progress, self._on_lost = parts, on_end, on_progress, on_lost
        self._writer = ChunkWriter(parts.store, parts.files, parts.video)

    def record(self, event: Event) -> None:
        """Whatever goes wrong here ends the event's session and no other."""
        if isinstance(event, RebuiltEvent):
            logger.warning("the engine was built again (%s); its videos go on", event.reason)
            return
        if isinstance(event, LostEvent):
            logger.warning("%d sessions go on in other workers: %s", len(event.ids), event.reason)
            self._on_lost(event.ids)
            return
        try:
            session = self._parts.store.find(event.id)
            if session is not None and session.state != FAILED:  # otherwise it was deleted or ended meanwhile
                self._record(session, event)
        except Exception as error:
            logger.debug("where session %s could not be recorded", event.id, exc_info=error)
            error = presentable(error)
            logger.error("session %s cannot be recorded: %s", event.id, error)
            self._parts.fail(event.id, SessionError(type(error).__name__, str(error)))

    def _record(self, session: SessionRecord, event: VideoEvent) -> None:
        if isinstance(event, ChunkEvent):
            self._record_chunk(session, event)
        elif isinstance(event, FailureEvent):
            self._record_failure(session, event)
        elif isinstance(event, RefusedEvent):
            logger.warning("session %s goes on without a new prompt: %s", session.id, event.message)
            self._parts.store.courses.take_back_prompt(session.id, event.prompt, event.recache)
        elif event.state == FINISHED:
            self._on_end(session.id)
        elif event.state == RUNNING and self._parts.store.begin(session.id):
            self._parts.announcer.tell(SessionState(session.id, IN_PROGRESS))

    def _record_chunk(self, session: SessionRecord, event: ChunkEvent) -> None:
        chunk = self._writer.write(session, event)
        if chunk is not None:
            self._parts.pace.note(time.monotonic())
            if session.state == QUEUED:
                self._parts.announcer.tell(SessionState(session.id, IN_PROGRESS))
            frames_done = chunk.first_frame + chunk.num_frames
            self._parts.announcer.tell(
                ChunkRecorded(session.id, chunk.index, chunk.first_frame, chunk.num_frames, frames_done)
            )
            self._tell_audience(session.id, chunk.num_frames)
            self._on_progress(session.id)

    def _tell_audience(self, id: str, num_frames: int) -> None:
        audience = self._parts.audiences.get(id)
        if audience is not None:
            now = time.monotonic()
            audience.receive(num_frames, now)
            self._parts.announcer.tell(CreditChanged(id, audience.credit_seconds(now)))

    def _record_failure(self, session: SessionRecord, event: FailureEvent) -> None:
        if session.state == COMPLETED:  # only a fork was to be made of it
            logger.warning("session %s cannot be continued: %s: %s", session.id, event.kind, event.message)
            return
        self._parts.fail(session.id, SessionError(event.kind, event.message))

"""The housekeeper's thread: what has to be done for sessions without anybody asking.

It ends those that have all their frames, checkpoints those that have made progress, makes forks independent of
their sources, and pauses those that are too far ahead of their viewers or have none any more.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from threading import Thread

from pagedvid.engine.failures import described
from pagedvid.engine.states import FINISHED
from pagedvid.errors import ConfigError, PagedvidError
from pagedvid.service.errors import LostWorkerError, StorageError
from pagedvid.service.forks import Forks
from pagedvid.service.parts import Parts
from pagedvid.service.records import (
    COMPLETED,
    IN_PROGRESS,
    PAUSED,
    PAUSED_WITHOUT_VIEWER,
    QUEUED,
    UNFINISHED,
    SessionRecord,
)
from pagedvid.service.session_events import CreditChanged, SessionState
from pagedvid.service.stored_courses import StoredCheckpoint

logger = logging.getLogger(__name__)

_TICK_SECONDS = 0.25
_PATIENCE_SECONDS = 0.02
"""How long it waits for the lock of a session before it turns to the next job."""

Job = Callable[[str], bool | None]
"""Called with a session's id, under its lock; returns False to be called again later."""


class Housekeeper:
    """All but `start` and `stop` may be called from any thread, and return at once."""

    def __init__(self, parts: Parts, forks: Forks) -> None:
        self._parts, self._forks = parts, forks
        self._jobs: SimpleQueue[tuple[Job, str] | None] = SimpleQueue()
        self._put_off: list[tuple[Job, str]] = []
        """Jobs to try again, because somebody else had the lock of their session."""
        self._thread = Thread(target=self._run, name="pagedvid-housekeeper", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self, seconds: float) -> None:
        """Ends the thread after its present job; waits at most so many seconds for that."""
        self._jobs.put(None)
        self._thread.join(seconds)

    def do(self, job: Job, id: str) -> None:
        """Has a job done for a session, under its lock."""
        self._jobs.put((job, id))

    def end(self, id: str) -> None:
        """To be called when the worker has finished a session."""
        self._jobs.put((self._end, id))

    def progress(self, id: str) -> None:
        """To be called when a chunk of a session was recorded."""
        self._jobs.put((self._follow, id))

    def secure(self, id: str) -> None:
        """To be called when a held session has an event: it may be a fork that has begun."""
        self._jobs.put((self._secure, id))

    # ------------------------------------------------------------------ on the housekeeper's thread

    def _run(self) -> None:
        next_tick = time.monotonic()
        while True:
            try:
                job = self._jobs.get(timeout=max(0.0, next_tick - time.monotonic()))
            except Empty:
                next_tick = time.monotonic() + _TICK_SECONDS
                self._tick()
                continue
            if job is None:
                return
            self._do_all([*self._put_off, job])

    def _do_all(self, jobs: Sequence[tuple[Job, str]]) -> None:
        self._put_off = [(job, id) for job, id in jobs if not self._try(job, id)]

    def _try(self, job: Job, id: str) -> bool:
        """Whether the job is done. It is not if somebody else has the session's lock: waiting for that could last for
        ever, since they may wait for pages that only the housekeeper frees."""
        with self._parts.locked_within(_PATIENCE_SECONDS, id) as has_lock:
            return has_lock and self._do(job, id)

    def _do(self, job: Job, id: str) -> bool:
        try:
            return job(id) is not False
        except PagedvidError as error:
            logger.warning("session %s: %s", id, described(error))
        except Exception:
            logger.exception("session %s: the housekeeper met an error that nobody expected", id)
        return True

    def _tick(self) -> None:
        self._do_all(self._put_off)
        for id in list(self._parts.audiences):
            self._try(self._watch, id)
        for id in list(self._parts.awake):
            self._try(self._forks.let_sleep, id)
        try:
            self._parts.store.save_failures()
        except StorageError as error:
            logger.warning("failures of sessions cannot be written yet: %s", error)

    def _watch(self, id: str) -> None:
        """Lets a live session wait for its viewers, or go on because they have caught up."""
        with self._parts.locked(id):
            session, audience = self._parts.store.find(id), self._parts.audiences.get(id)
            if session is None or audience is None:
                return
            now = time.monotonic()
            if session.state in (QUEUED, IN_PROGRESS) and audience.is_gone(now):
                logger.info("session %s is paused: its viewers are gone", id)
                self._parts.set_state(id, PAUSED, PAUSED_WITHOUT_VIEWER)
            self._parts.steer(id)
            self._parts.announcer.tell(CreditChanged(id, audience.credit_seconds(now)))

    def _secure(self, id: str) -> None:
        source_id = self._forks.source_of(id)
        self._forks.secure(id)
        if source_id is not None:
            self.do(self._forks.let_sleep, source_id)

    def _follow(self, id: str) -> None:
        self._watch(id)
        self._checkpoint_if_due(id)

    def _checkpoint_if_due(self, id: str) -> None:
        with self._parts.locked(id):
            session, last = self._parts.store.find(id), self._parts.store.courses.checkpoint(id)
            if session is None or session.state not in UNFINISHED:
                return
            num_chunks = self._parts.store.chunks.num_from(id, last.frames_done if last else 0)
            if num_chunks >= self._parts.limits.checkpoint_chunks:
                self._parts.install(id, self._parts.take_checkpoint(id))

    def _end(self, id: str) -> bool:
        """Completes a session and frees its pages: with its checkpoint on disk it can still be continued. Later, if
        forks depend on it or its worker has ended."""
        with self._parts.locked(id):
            session = self._parts.store.find(id)
            if session is None or session.state not in UNFINISHED:
                return True
            if self._forks.has_pending(id):
                return False
            try:
                checkpoint = self._last_checkpoint(id)
            except LostWorkerError:
                return False  # the end of its video is made again elsewhere
            if not self._is_finished(session):  # it was extended meanwhile
                return True
            try:
                self._complete(id, checkpoint)
            except StorageError as error:
                logger.warning("session %s cannot be completed yet: %s", id, described(error))
                return False
            self._parts.worker.cancel(id)
            self._parts.audiences.pop(id, None)
            self._parts.paused.discard(id)
            self._parts.announcer.tell(SessionState(id, COMPLETED))
            return True

    def _complete(self, id: str, checkpoint: StoredCheckpoint | None) -> None:
        if checkpoint is not None:
            self._parts.install(id, checkpoint, COMPLETED)
        else:
            self._parts.recorder.call(lambda: self._parts.store.set_state(id, COMPLETED))

    def _last_checkpoint(self, id: str) -> StoredCheckpoint | None:
        try:
            return self._parts.take_checkpoint(id)
        except LostWorkerError:
            raise
        except ConfigError:
            return None  # it has failed, which will be told
        except PagedvidError as error:
            logger.warning("session %s is complete, but it cannot be continued later: %s", id, described(error))
            return None

    def _is_finished(self, session: SessionRecord) -> bool:
        """Whether the worker has nothing more to do for a session, after one of its verbs is done."""
        return any(
            video.id == session.id and video.num_frames == session.num_frames and video.state == FINISHED
            for video in self._parts.worker.stats().videos
        )

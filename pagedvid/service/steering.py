"""Pause, resume and delete."""

from __future__ import annotations

from contextlib import suppress

from pagedvid.errors import ConfigError, WorkerError
from pagedvid.service.courses import require_unfinished
from pagedvid.service.errors import Conflict
from pagedvid.service.forks import Forks
from pagedvid.service.parts import Parts
from pagedvid.service.records import CANCELLED, IN_PROGRESS, PAUSED, PAUSED_BY_USER, QUEUED, UNFINISHED, SessionRecord
from pagedvid.service.session_events import SessionState


class Steering:
    """Methods of `Sessions` by the same names; see there. Thread-safe."""

    def __init__(self, parts: Parts, forks: Forks) -> None:
        self._parts, self._forks = parts, forks

    def pause(self, id: str) -> SessionRecord:
        """Pauses a session at its next chunk boundary. Raises NotFound and Conflict."""
        with self._parts.locked(id):
            session = self._parts.store.get(id)
            require_unfinished(session, "cannot be paused")
            self._change_state(session, PAUSED, PAUSED_BY_USER)
            return self._parts.store.get(id)

    def resume(self, id: str) -> SessionRecord:
        """Goes on with a session, whatever it was paused for. Raises NotFound and Conflict."""
        with self._parts.locked(id):
            session, audience = self._parts.store.get(id), self._parts.audiences.get(id)
            require_unfinished(session, "cannot be resumed")
            if audience is not None:
                audience.forget_departure()
            if session.state == PAUSED:
                self._change_state(session, IN_PROGRESS if session.chunks_done else QUEUED, None)
            return self._parts.store.get(id)

    def delete(self, id: str) -> None:
        """Ends a session and removes all of it. Raises NotFound, and Conflict while forks need it."""
        with self._parts.locked(id):
            session = self._parts.store.get(id)
            if self._forks.has_pending(id):
                raise Conflict(
                    f"session {id} is being forked, and its forks need it until they begin at its next chunk boundary; "
                    "delete it after that, or delete those forks first"
                )
            if session.state in UNFINISHED or id in self._parts.awake:
                with suppress(ConfigError, WorkerError):  # it has just ended, or nothing works any more
                    self._parts.wait(self._parts.worker.cancel(id))
            self._forks.abandon(id)
            self._parts.remove(id)
        self._parts.announcer.tell(SessionState(id, CANCELLED))

    def _change_state(self, session: SessionRecord, state: str, pause_reason: str | None) -> None:
        """Changes the row first, which counts after a crash, then the worker. If that refuses, the row is restored."""
        self._parts.store.set_state(session.id, state, pause_reason)
        try:
            self._parts.steer(session.id)
        except BaseException:
            self._parts.store.set_state(session.id, session.state, session.pause_reason)
            raise
        self._parts.announcer.tell(SessionState(session.id, state))

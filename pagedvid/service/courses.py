"""What changes a session's course while it is under way: another prompt, more frames, forks.

A change counts when it can survive a crash. Until then the session is held, so that nothing is recorded that a restart
would not make again.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from pagedvid.engine.failures import described
from pagedvid.errors import ConfigError
from pagedvid.output.given_files import START
from pagedvid.service.errors import Conflict, LostWorkerError, StorageError, storage_errors
from pagedvid.service.events import Event
from pagedvid.service.forks import Forks
from pagedvid.service.intake import Asked, Intake
from pagedvid.service.parts import Parts
from pagedvid.service.records import (
    COMPLETED,
    FAILED,
    IN_PROGRESS,
    UNFINISHED,
    NewFork,
    NewSession,
    Reference,
    SessionRecord,
)
from pagedvid.service.session_events import SessionState
from pagedvid.service.stored_courses import GivenPrompt, StoredCheckpoint

logger = logging.getLogger(__name__)


class Courses:
    """The verbs of `Sessions` by the same names; see there. Thread-safe."""

    def __init__(self, parts: Parts, forks: Forks, intake: Intake) -> None:
        self._parts, self._forks, self._intake = parts, forks, intake

    # ------------------------------------------------------------------ prompt

    def prompt(self, id: str, prompt: str, recache: bool) -> None:
        """Another prompt from the next chunk on. Raises NotFound, Conflict, and what the worker raises."""
        parts = self._parts
        with self._forks.locked_when_secured(id):
            session = self._independent(id)
            require_unfinished(session, "takes no prompt")
            if session.later_prompts:
                raise Conflict(f"session {id} follows its own schedule of prompts; fork it with a prompt instead")
            given = GivenPrompt(session.frames_done, prompt, recache)
            parts.recorder.hold(id)
            try:
                parts.wait(parts.worker.prompt(id, prompt, recache=recache))
                checkpoint = self._checkpoint_of_change(id)
            except LostWorkerError:
                parts.recorder.release(id, lambda events: None)  # they may be of the new prompt, and are made again
                raise
            except BaseException:
                parts.recorder.release(id, parts.recorder.record_all)
                raise
            parts.recorder.release(id, lambda events: self._settle(id, given, checkpoint, events))
            parts.remove_old_checkpoints(id)

    def _checkpoint_of_change(self, id: str) -> StoredCheckpoint | None:
        try:
            return self._parts.take_checkpoint(id)
        except StorageError as error:
            logger.warning("session %s: its new prompt may come later after a restart: %s", id, described(error))
            return None

    def _settle(
        self, id: str, given: GivenPrompt, checkpoint: StoredCheckpoint | None, events: Sequence[Event]
    ) -> None:
        """The prompt, the checkpoint that has it, and the frames before that checkpoint: all of them or none."""
        with self._parts.store.transaction():
            self._parts.store.courses.give_prompt(id, given)
            self._parts.recorder.record_all(events)  # one of them may say that the prompt was refused
            if checkpoint is not None:
                self._parts.store.courses.set_checkpoint(id, checkpoint)

    # ------------------------------------------------------------------ extend

    def extend(self, id: str, num_frames: int) -> None:
        """More frames, also for a completed session. Raises NotFound, Conflict, and what the worker raises."""
        parts = self._parts
        with parts.locked(id):
            session = self._independent(id)
            if session.state == FAILED:
                raise Conflict(f"session {id} has failed and cannot be extended; make a new one")
            if num_frames <= session.num_frames:
                raise ConfigError(f"session {id} has {session.num_frames} frames already; give more than {num_frames}")
            state = IN_PROGRESS if session.state == COMPLETED else session.state
            # First the row: should the service end now, the session goes on from its checkpoint with the new length.
            parts.store.set_length(id, num_frames, state, None)
            try:
                self._extend_in_worker(session, num_frames)
            except BaseException:
                parts.store.set_length(id, session.num_frames, session.state, session.completed_at)
                self._forks.let_sleep(id)
                raise
            if session.state == COMPLETED:
                parts.awake.discard(id)
                parts.watch(session)
                parts.announcer.tell(SessionState(id, state))

    def _extend_in_worker(self, session: SessionRecord, num_frames: int) -> None:
        if session.state == COMPLETED:
            for future in self._forks.wake(session):
                self._parts.wait(future)
        self._parts.wait(self._parts.worker.extend(session.id, num_frames))

    # ------------------------------------------------------------------ fork

    def fork(self, id: str, forks: Sequence[NewFork]) -> list[SessionRecord]:
        """New sessions that share the history. Raises NotFound, Conflict, Busy, and what the worker raises."""
        if not forks:
            raise ConfigError("no forks were given; give at least one")
        with self._parts.locked(id):
            source = self._independent(id)
            if source.state == FAILED:
                raise Conflict(f"session {id} has failed and cannot be forked; make a new one")
            given = self._reference_of(source)
            asked = [Asked(_continued(source, given, fork), id) for fork in forks]
            return self._intake.accept(asked, lambda sessions: self._forks.ask(source, sessions))

    def _reference_of(self, session: SessionRecord) -> Reference | None:
        """Every fork gets its own copy, so that it depends on the source no longer than on its history."""
        if session.reference_kind is None:
            return None
        with storage_errors():
            content = self._parts.files.reference(session.id).read_bytes()
        return Reference(session.reference_kind, content, session.inputs.get(START))

    def _independent(self, id: str) -> SessionRecord:
        """The session. Raises Conflict while it is a fork that has not begun."""
        session = self._parts.store.get(id)
        if self._forks.is_pending(id):
            raise Conflict(f"session {id} begins at the next chunk boundary of {session.source_id}; try again then")
        return session


def require_unfinished(session: SessionRecord, consequence: str) -> None:
    """Raises Conflict for a session that has ended."""
    if session.state not in UNFINISHED:
        raise Conflict(f"session {session.id} is {session.state} and {consequence}; extend or fork a completed one")


def _continued(source: SessionRecord, reference: Reference | None, fork: NewFork) -> NewSession:
    num_frames = source.num_frames * (2 if source.state == COMPLETED else 1)
    return NewSession(
        prompt=source.prompt if fork.prompt is None else fork.prompt,
        num_frames=num_frames if fork.num_frames is None else fork.num_frames,
        seed=source.seed if fork.seed is None else fork.seed,
        live_frames_per_second=source.live_frames_per_second,
        priority=source.priority,
        inputs=source.inputs,
        kind=source.kind if fork.kind is None else fork.kind,
        later_prompts=source.later_prompts if fork.prompt is None else (),
        reference=reference,
    )

"""After a restart, every accepted and unfinished session goes on, and leftovers of all others are removed. The sessions
of one of several workers go on in the same way, when it has ended or is drained.

Files are cut back to what their rows say. A session goes on from its checkpoint; frames between that and the end of its
file are made again and not recorded twice. One without a checkpoint begins anew, with the same frames. Forks that had
not begun are asked for again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from pagedvid.errors import PagedvidError
from pagedvid.service.errors import LostWorkerError, storage_errors
from pagedvid.service.forks import Forks
from pagedvid.service.parts import Parts
from pagedvid.service.records import PAUSED, UNFINISHED, SessionError, SessionRecord
from pagedvid.service.replicas import Replicas
from pagedvid.service.stats import WORKING
from pagedvid.service.taking_up import take_up

logger = logging.getLogger(__name__)

Job = Callable[[str], bool | None]


Later = Callable[[Job, str], None]
"""Calls a function with a session's id on another thread, under its lock, again and again until it is not False."""


@dataclass(frozen=True)
class Restart:
    """`prepare` before the worker starts, so that it has all verbs before its first step; `follow` after that."""

    parts: Parts
    forks: Forks
    later: Later
    lost: set[str] = field(default_factory=set)
    """Sessions whose worker has ended, until they are given to another one."""

    def prepare(self, settings: str) -> list[tuple[SessionRecord, Sequence[Future[Any]]]]:
        """Tidies up and gives the unfinished sessions to the worker; returns them with the verbs that they need.

        `settings`: what decides the frames of videos. Videos that were begun with others begin anew, or have failed if
        they were given prompts on the way. Raises StorageError.
        """
        store = self.parts.store
        store.remove_unaccepted()
        before = store.exchange_settings(settings)
        has_changed = before is not None and before != settings
        with storage_errors():
            self._remove_unknown_files()
        for session in store.unfinished():
            if has_changed:
                self._begin_anew_or_fail(session.id, "the settings that decide the frames of its video have changed")
        return [(session, self._give(session)) for session in store.unfinished()]

    def follow(self, given: Sequence[tuple[SessionRecord, Sequence[Future[Any]]]]) -> None:
        """Ends the sessions that cannot go on."""

        def check(session: SessionRecord, future: Future[Any]) -> None:
            error = future.exception()
            if isinstance(error, LostWorkerError):
                ids = [id for id in (self.forks.source_of(session.id), session.id) if id is not None]
                self.lose([id for id in ids if not self._is_given_again(id)])
            elif error is not None:
                self.later(lambda id: self._settle(id, error), session.id)

        for session, futures in given:
            for future in futures:
                future.add_done_callback(partial(check, session))

    # ------------------------------------------------------------------ one of several workers

    def lose(self, ids: Iterable[str]) -> None:
        """Sessions go on in another worker; what theirs has told is recorded."""
        self.lost.update(ids)
        for id in ids:
            self.later(self._give_again, id)

    def move(self, id: str) -> bool:
        """A session goes on in another worker, from a checkpoint of this moment. Under its lock. Later, if it is being
        forked. Raises what the worker raises."""
        parts, session = self.parts, self.parts.store.find(id)
        if session is None or session.state not in UNFINISHED or id in self.lost:
            return True
        if self.forks.is_pending(id) or self.forks.has_pending(id):
            return False
        if session.chunks_done > 0:
            parts.install(id, parts.take_checkpoint(id))
        parts.wait(parts.worker.cancel(id))
        self.lost.add(id)
        return self._give_again(id)

    def _is_given_again(self, id: str) -> bool:
        """A session may have several verbs that fail, and its worker's end may have been told before they do."""
        return isinstance(self.parts.worker, Replicas) and self.parts.worker.holds(id)

    def _give_again(self, id: str) -> bool:
        """Under the session's lock. Later, if no worker is up. Forks that have not begun are asked for right after
        their source is given, which would come too far without them."""
        if id not in self.lost:
            return True
        if self.parts.worker.stats().state != WORKING:
            return False
        self.forks.lose(id)
        self.parts.awake.discard(id)
        self.parts.paused.discard(id)
        session = self.parts.store.find(id)
        if session is not None and session.source_id in self.lost:
            return False
        self.lost.discard(id)
        if session is not None and session.state in UNFINISHED:
            self.follow([(session, self._give(session))])
        for fork_id in self.forks.pending_of(id) & self.lost:
            with self.parts.locked(fork_id):
                self._give_again(fork_id)
        return True

    # ------------------------------------------------------------------ files

    def _remove_unknown_files(self) -> None:
        store, files = self.parts.store, self.parts.files
        ids = store.all_ids()
        for id in files.ids() - set(ids):
            files.remove(id)
        for id in ids:
            self._tidy(id)

    def _tidy(self, id: str) -> None:
        store, files = self.parts.store, self.parts.files
        files.make(id)
        checkpoint = store.courses.checkpoint(id)
        files.keep_only(id, [] if checkpoint is None else [checkpoint.name])
        num_bytes = files.cut(id, store.chunks.end(id))
        if num_bytes < store.chunks.end(id):
            self._shorten(id, num_bytes)
        if checkpoint is not None and not files.checkpoint(id, checkpoint.name).exists():
            logger.error("session %s: its file %s is gone", id, checkpoint.name)
            store.courses.drop_checkpoint(id)

    def _shorten(self, id: str, num_bytes: int) -> None:
        """A video is shorter than what was recorded: the disk has lost something."""
        session = self.parts.store.find(id)
        if session is None:
            return
        logger.error("session %s: only %d bytes of its video are left", id, num_bytes)
        reason = f"only {num_bytes} bytes of the video are left"
        if session.state in UNFINISHED:
            self._begin_anew_or_fail(id, reason)
        else:
            self.parts.store.fail(id, SessionError("StorageError", reason))

    def _begin_anew_or_fail(self, id: str, reason: str) -> None:
        """When each of several prompts took over is known in checkpoints only."""
        if self._has_one_prompt(id):
            self._begin_anew(id)
        else:
            message = f"{reason}, and it cannot begin anew: it was given prompts on the way; make a new one"
            self.parts.store.fail(id, SessionError("StateError", message))

    def _begin_anew(self, id: str) -> None:
        self.parts.store.chunks.cut(id, 0)
        self.parts.store.courses.drop_checkpoint(id)

    # ------------------------------------------------------------------ going on

    def _give(self, session: SessionRecord) -> list[Future[Any]]:
        parts = self.parts
        checkpoint = parts.store.courses.checkpoint(session.id)
        if checkpoint is not None:
            futures: list[Future[Any]] = [take_up(parts, session, checkpoint)]
        elif session.source_id is not None and session.shares_history:
            return self._ask_again(session, session.source_id)
        else:
            futures = [parts.worker.submit(parts.request_of(session), frames_given=session.frames_done)]
        parts.watch(session)
        if session.state == PAUSED:
            futures.append(parts.worker.pause(session.id))
            parts.paused.add(session.id)
        return futures

    def _ask_again(self, fork: SessionRecord, source_id: str) -> list[Future[Any]]:
        """A fork that had not begun: it begins at the first boundary of its source from where that goes on."""
        self.parts.store.chunks.cut(fork.id, 0)
        try:
            return self.forks.order(self.parts.store.get(source_id), [fork])
        except PagedvidError as error:
            failed: Future[Any] = Future()
            failed.set_exception(error)
            return [failed]

    def _settle(self, id: str, error: BaseException) -> None:
        """A session cannot go on from where it was: it begins anew, or has failed."""
        with self.parts.locked(id):
            session = self.parts.store.find(id)
            if session is None or session.state not in UNFINISHED:
                return
            if self._can_begin_anew(session):
                logger.warning("session %s begins anew, its checkpoint is refused: %s", id, error)
                self._begin_anew(id)
                self.parts.wait(self.parts.worker.submit(self.parts.request_of(session)))
                self.parts.paused.discard(id)
                self.parts.steer(id)
            else:
                logger.error("session %s cannot go on: %s", id, error)
                self.forks.abandon(id)
                self.parts.fail(id, SessionError(type(error).__name__, str(error)))

    def _can_begin_anew(self, session: SessionRecord) -> bool:
        """Whether its request and nothing else decides its frames, and a checkpoint was tried."""
        has_checkpoint = self.parts.store.courses.checkpoint(session.id) is not None
        return not session.shares_history and self._has_one_prompt(session.id) and has_checkpoint

    def _has_one_prompt(self, id: str) -> bool:
        return len(self.parts.store.courses.prompts(id)) == 1

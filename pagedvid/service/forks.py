"""Forks: sessions that go on from the history of another one.

The worker makes a fork at its source's next chunk boundary. From when it is asked for until it has a checkpoint of its
own, a fork is `pending`: its events wait, and after a crash it is asked for again. Then it gets a copy of its source's
frames up to that boundary (joining.py), and depends on the source no more.

    source   chunk 0 | chunk 1 | chunk 2 ...          after a crash in the meantime the source has not come further,
                  ^ asked      | its events wait      because nothing after the boundary was recorded
    fork                       | chunk 2 ...
                               begins      ^ secured: from now on all events are recorded
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from pagedvid.engine.requests import Continuation
from pagedvid.engine.states import WAITING
from pagedvid.errors import ConfigError, PagedvidError, StateError
from pagedvid.service.errors import Conflict, LostWorkerError
from pagedvid.service.events import Event, StateEvent, VideoEvent
from pagedvid.service.joining import fail, join
from pagedvid.service.parts import Parts
from pagedvid.service.records import COMPLETED, SessionRecord
from pagedvid.service.taking_up import take_up

_POLL_SECONDS = 0.01


@dataclass
class _Pending:
    """A fork that still depends on its source."""

    source_id: str
    made: Future[frozenset[str]] | None = None
    """The worker's answer, after which it knows the fork. It may take long: the source's frames may have to be made
    again before."""


class Forks:
    """Makes forks independent of their sources. Thread-safe."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._pending: dict[str, _Pending] = {}
        self._begun: dict[str, set[str]] = {}
        """By source, the pending forks that have begun; they hold the source. Only for the recorder's thread."""

    def is_pending(self, id: str) -> bool:
        """Whether a session is a fork that still depends on its source."""
        return id in self._pending

    def source_of(self, id: str) -> str | None:
        """The session on which a pending fork depends."""
        pending = self._pending.get(id)
        return None if pending is None else pending.source_id

    def pending_of(self, source_id: str) -> set[str]:
        """The forks that still depend on a session."""
        return {id for id, pending in list(self._pending.items()) if pending.source_id == source_id}

    def has_pending(self, source_id: str) -> bool:
        """Whether forks depend on a session. To be called under its lock. Waits for forks that are just being made
        independent."""
        for fork_id in self.pending_of(source_id):
            with self._parts.locked(fork_id):
                if fork_id in self._pending:
                    return True
        return False

    def ask(self, source: SessionRecord, forks: Sequence[SessionRecord]) -> None:
        """Asks the worker for forks. Under the source's lock. Raises Conflict, and what the worker raises."""
        try:
            *woken, forked = self.order(source, forks)
            for future in woken:
                self._parts.wait(future)
            self._separate(self._parts.wait(forked))
        except BaseException:
            for fork in forks:
                self.abandon(fork.id)
            self.let_sleep(source.id)
            raise

    def order(self, source: SessionRecord, forks: Sequence[SessionRecord]) -> list[Future[Any]]:
        """What `ask` waits for: the worker's verbs, in their order. Raises Conflict."""
        for fork in forks:  # before the source is woken, which would otherwise be put to sleep again
            self._pending[fork.id] = _Pending(source.id)
            self._parts.recorder.hold(fork.id)
        futures = self.wake(source) if source.state == COMPLETED else []
        continuations = [_continuation(it) for it in forks]
        forked = self._parts.worker.fork(source.id, continuations)
        for fork in forks:
            if fork.id in self._pending:
                self._pending[fork.id].made = forked
        forked.add_done_callback(self._separate_made)  # nobody waits for it after a restart
        return [*futures, forked]

    def wake(self, session: SessionRecord) -> list[Future[Any]]:
        """Brings a completed session back into the worker; returns the futures of that. Call it under its lock. Raises
        Conflict without a checkpoint."""
        if session.id in self._parts.awake:
            return []
        checkpoint = self._parts.store.courses.checkpoint(session.id)
        if checkpoint is None:
            raise Conflict(f"session {session.id} cannot be continued: its last checkpoint could not be written")
        self._parts.awake.add(session.id)
        return [take_up(self._parts, session, checkpoint)]

    def let_sleep(self, id: str) -> None:
        """Frees the pages of a session that was woken, once no fork waits for it. Under its lock."""
        if id in self._parts.awake and not self.has_pending(id):
            self._parts.awake.discard(id)
            self._parts.worker.cancel(id)

    def abandon(self, id: str) -> None:
        """Forgets a fork that is not made, or was deleted; the worker forgets it as soon as it knows it."""
        pending = self._pending.pop(id, None)
        if pending is not None:
            if pending.made is not None:
                pending.made.add_done_callback(lambda made: self._parts.worker.cancel(id))
            self._release(id, lambda events: None)

    def lose(self, id: str) -> None:
        """The worker of a session and of its forks has ended. What waits in the recorder is not recorded, as after a
        crash: it is made again.

        A fork that was pending still is, until it is asked for again; until then its source is held, so that it does
        not come further than where the fork will begin.
        """
        recorder = self._parts.recorder

        def drop() -> None:
            if self._begun.pop(id, None) is not None or id in self._pending:
                recorder.release(id, lambda events: None)
            if forks := self.pending_of(id):
                self._begun[id] = forks
                recorder.hold(id)

        recorder.call(drop)

    def _separate_made(self, forked: Future[frozenset[str]]) -> None:
        if not forked.cancelled() and forked.exception() is None:
            self._separate(forked.result())

    def _separate(self, ids: Iterable[str]) -> None:
        """Forks that share nothing with their source are sessions like others."""

        def settle(id: str, events: Sequence[Event]) -> None:
            self._parts.store.separate(id)
            if (session := self._parts.store.find(id)) is not None:
                self._parts.watch(session)
            self._parts.recorder.record_all(events)

        for id in ids:
            if self._pending.pop(id, None) is not None:
                self._release(id, partial(settle, id))

    def note(self, event: VideoEvent) -> None:
        """An event waits; if it is a pending fork's first one, its source is held. On the recorder's thread."""
        is_waiting = isinstance(event, StateEvent) and event.state == WAITING
        source_id = None if is_waiting else self.source_of(event.id)
        if source_id is not None:
            self._begun.setdefault(source_id, set()).add(event.id)
            self._parts.recorder.hold(source_id)

    @contextmanager
    def locked_when_secured(self, source_id: str) -> Iterator[None]:
        """Holds a session's lock during the block, which begins when no fork depends on the session any more. Raises
        Conflict when that takes too long.

        It is not held meanwhile: a session whose worker has ended has to be given to another one, under its lock.
        """
        give_up = time.monotonic() + min(self._parts.limits.verb_seconds, self._parts.seconds_left())
        while True:
            with self._parts.locked(source_id):
                if not self.has_pending(source_id):
                    yield
                    return
            if time.monotonic() > give_up:
                raise Conflict(f"session {source_id} is being forked; try again when its forks have begun")
            time.sleep(_POLL_SECONDS)

    def secure(self, id: str) -> None:
        """Makes a pending fork independent, if it has begun."""
        with self._parts.locked(id):
            source_id = self.source_of(id)
            session = self._parts.store.find(id)
            if source_id is None or session is None:
                return
            try:
                checkpoint = self._parts.take_checkpoint(id)
            except (StateError, LostWorkerError):
                return  # it has not begun, and another event will come; or it is given again
            except ConfigError:  # it has failed, and the events that wait say why
                settle = self._parts.recorder.record_all
            except PagedvidError as error:
                settle = partial(fail, self._parts, id, error)
            else:
                settle = partial(join, self._parts, session, source_id, checkpoint)
            self._release(id, lambda events: self._settle(id, settle, events))
            self._pending.pop(id, None)

    def _settle(self, id: str, settle: Callable[[Sequence[Event]], None], events: Sequence[Event]) -> None:
        """Settles what a fork's events mean, unless it was found meanwhile that it shares nothing with its source. On
        the recorder's thread."""
        if self.is_pending(id):
            settle(events)
        else:
            self._parts.recorder.record_all(events)

    def _release(self, id: str, settle: Callable[[Sequence[Event]], None]) -> None:
        """A fork's events go on as `settle` says, and then those of a source that no other fork holds."""
        recorder = self._parts.recorder

        def settle_both(events: Sequence[Event]) -> None:
            settle(events)
            for source_id, begun in list(self._begun.items()):
                begun.discard(id)
                if not begun:
                    del self._begun[source_id]
                    recorder.release(source_id, recorder.record_all)

        recorder.release(id, settle_both)


def _continuation(fork: SessionRecord) -> Continuation:
    """What is left of its source's schedule of prompts goes on in a fork that has one."""
    return Continuation(fork.id, None if fork.later_prompts else fork.prompt, fork.seed, fork.num_frames)

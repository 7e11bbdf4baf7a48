"""New sessions: whether there is room for them, and how they become durable before anybody is told that they exist."""

from __future__ import annotations

import json
import logging
import secrets
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from pagedvid.arguments import one_of, whole_number
from pagedvid.engine.requests import VideoRequest
from pagedvid.errors import ConfigError, OverloadError
from pagedvid.service.errors import Busy, StorageError, storage_errors
from pagedvid.service.parts import Parts
from pagedvid.service.records import KINDS, NewSession, SessionRecord

logger = logging.getLogger(__name__)

_ID_BYTES = 16
"""Of chance: nobody guesses an id."""
_MOST_FRAMES, _MOST_NUMBER = 10**9, 2**63 - 1
_RETRY_SECONDS, _LONGEST_RETRY_SECONDS = 10.0, 600.0
"""What a caller is told to wait when nothing is known of the speed yet, and at most."""


@dataclass(frozen=True)
class Asked:
    """A session before it is accepted."""

    new: NewSession
    source_id: str | None = None


class Intake:
    """Accepts sessions. Thread-safe."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._counting = threading.Lock()

    def accept(self, asked: Sequence[Asked], give: Callable[[Sequence[SessionRecord]], None]) -> list[SessionRecord]:
        """All of them or none. `give`: gives them to the worker; what it raises is raised, and nothing has changed.

        Raises Busy, ConfigError and PromptError for values that cannot be kept, and StorageError.
        """
        for one in asked:
            _check(one.new)
        ids = self._insert(asked)
        try:
            with storage_errors():
                for id, one in zip(ids, asked, strict=True):
                    self._make_files(id, one.new)
            give([record for id in ids if (record := self._parts.store.find(id)) is not None])
            self._parts.store.accept(*ids)
        except BaseException:
            for id in ids:
                self._undo(id)
            raise
        return [self._parts.store.get(id) for id in ids]

    def submit(self, sessions: Sequence[SessionRecord]) -> None:
        """For `accept`: sessions that begin at their beginning."""
        for session in sessions:
            self._parts.watch(session)
            try:
                self._parts.wait(self._parts.worker.submit(self._parts.request_of(session)))
            except OverloadError as error:
                raise Busy(str(error), self._retry_seconds(), {"live": self._parts.store.num_live() - 1}) from error

    def _insert(self, asked: Sequence[Asked]) -> list[str]:
        with self._counting:
            self._require_room(asked)
            ids = [f"{one.new.kind}_{secrets.token_hex(_ID_BYTES)}" for one in asked]
            with self._parts.store.transaction():
                for id, one in zip(ids, asked, strict=True):
                    self._parts.store.insert(id, self._with_reference(id, one.new), one.source_id)
        return ids

    def _with_reference(self, id: str, new: NewSession) -> NewSession:
        """With the name of the reference's file in the inputs."""
        if new.reference is None:
            return new
        return replace(new, inputs={**new.inputs, **new.reference.inputs(self._parts.files.reference(id).name)})

    def _make_files(self, id: str, new: NewSession) -> None:
        self._parts.files.make(id)
        if new.reference is not None:
            self._parts.files.write_reference(id, new.reference.content)

    def _require_room(self, asked: Sequence[Asked]) -> None:
        limits, store = self._parts.limits, self._parts.store
        num_new_live = sum(one.new.is_live for one in asked)
        for what, used, new, most in (
            ("queued", store.num_queued(), len(asked), limits.max_queued),
            ("live", store.num_live(), num_new_live, limits.max_live),
        ):
            if new > 0 and used + new > most:
                seconds = self._retry_seconds()
                raise Busy(
                    f"{used} of at most {most} sessions are {what}, and {new} more were asked for; "
                    f"try again in about {seconds:.0f} seconds",
                    seconds,
                    {what: used, f"max_{what}": most},
                )

    def _retry_seconds(self) -> float:
        """When the next session ends, if the work goes on as it has lately."""
        seconds_per_chunk = self._parts.pace.seconds_per_chunk
        num_sessions, num_chunks = self._parts.store.least_left()
        if seconds_per_chunk is None or num_sessions == 0:
            return _RETRY_SECONDS
        return min(max(1.0, seconds_per_chunk * num_sessions * num_chunks), _LONGEST_RETRY_SECONDS)

    def _undo(self, id: str) -> None:
        """Removes what there is of a session that is not accepted; what is left is removed at the next start."""
        self._parts.worker.cancel(id)  # it may not be there
        try:
            self._parts.remove(id)
        except StorageError as error:
            logger.warning("session %s was not accepted, and is not removed yet: %s", id, error)


def _check(new: NewSession) -> None:
    """Raises ConfigError for what no request may be, and for what no row can hold."""
    one_of(KINDS, "kind", new.kind, ConfigError)
    VideoRequest(
        "new",
        new.prompt,
        new.num_frames,
        new.seed,
        priority=new.priority,
        live_frames_per_second=new.live_frames_per_second,
        later_prompts=new.later_prompts,
    )
    whole_number("num_frames", new.num_frames, 1, _MOST_FRAMES, ConfigError)
    for name, number in (("seed", new.seed), ("priority", new.priority)):
        whole_number(name, number, -_MOST_NUMBER, _MOST_NUMBER, ConfigError)
    try:
        json.dumps(dict(new.inputs))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"inputs must be what JSON can hold: {error}") from None

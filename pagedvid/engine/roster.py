"""The roster: every video that an engine knows, by the id of its request."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable

from pagedvid.engine.failures import presentable
from pagedvid.engine.job import Change, Job
from pagedvid.engine.planning import Waiting
from pagedvid.engine.requests import Continuation, EngineOutput, RequestFailure
from pagedvid.errors import ConfigError, StateError

logger = logging.getLogger(__name__)


class Roster:
    """Videos that wait, and jobs; nothing here takes or frees a page."""

    def __init__(self) -> None:
        self.waiting: deque[Waiting] = deque()
        """In order of arrival."""
        self.parked: dict[str, Waiting] = {}
        """Those that were paused before they began."""
        self.jobs: dict[str, Job] = {}
        """Those that have begun, in order of arrival."""
        self.late: list[EngineOutput] = []
        """What happened between two steps; the next one gives it out."""
        self.num_failed = 0
        self._ids: set[str] = set()
        """Of all of these, and of forks that their sources have not made yet."""
        self._next_number = 0

    # ------------------------------------------------------------------ who is there

    def require_new(self, request_id: str) -> None:
        """Raises ConfigError for an id that is in use."""
        if request_id in self._ids:
            raise ConfigError(f"request {request_id!r} is still waiting or running; use another id, or cancel it first")

    def job(self, request_id: str) -> Job | None:
        """The job of a video; None: it has not begun. Raises ConfigError for an unknown id."""
        if request_id in self._ids:
            return self.jobs.get(request_id)
        raise ConfigError(
            f"request {request_id!r} is neither waiting nor running; videos that have ended are forgotten unless "
            "their request says keep=True"
        )

    def entry(self, request_id: str) -> Waiting:
        """The entry of a video that has not begun. Raises StateError for a fork whose source has not made it yet."""
        if request_id in self.parked:
            return self.parked[request_id]
        for entry in self.waiting:
            if entry.request.id == request_id:
                return entry
        raise StateError(
            f"video {request_id!r} begins at the next chunk boundary of the video that it continues; try again then"
        )

    def holders(self) -> list[Job | Waiting]:
        """Everything that changes may wait for: jobs, and videos that have not begun."""
        return [*self.jobs.values(), *self.waiting, *self.parked.values()]

    # ------------------------------------------------------------------ coming

    def queue(self, entry: Waiting) -> None:
        """Puts a video that has not begun behind the others that wait."""
        self._ids.add(entry.request.id)
        self.waiting.append(entry)

    def begin(self, job: Job) -> None:
        """Adds a job; if there is an entry of its id, the caller has taken that out."""
        self._ids.add(job.request.id)
        self.jobs[job.request.id] = job

    def expect(self, holder: Job | Waiting, changes: Iterable[Change]) -> None:
        """Lets changes wait for the next chunk boundary of a video."""
        holder.changes.extend(changes)
        self._ids.update(fork.id for fork in pending_forks(holder))

    def next_number(self) -> int:
        """The number of the next job."""
        self._next_number += 1
        return self._next_number - 1

    def replace_entry(self, entry: Waiting) -> None:
        """Exchanges the entry of a video that has not begun."""
        if entry.request.id in self.parked:
            self.parked[entry.request.id] = entry
        else:
            ids = [other.request.id for other in self.waiting]
            self.waiting[ids.index(entry.request.id)] = entry

    def park(self, request_id: str) -> None:
        """Pauses a video that has not begun. Raises StateError for a fork that its source has not made yet."""
        self.parked[request_id] = self.entry(request_id)
        self.waiting = deque(entry for entry in self.waiting if entry.request.id != request_id)

    def unpark(self, request_id: str) -> None:
        """Undoes `park`: the video waits again, behind those that wait now."""
        if request_id in self.parked:
            self.waiting.append(self.parked.pop(request_id))

    # ------------------------------------------------------------------ going

    def forget_entry(self, request_id: str) -> None:
        """Removes a video that has not begun, or a fork that its source has not made yet."""
        for holder in self.holders():
            holder.changes[:] = [change for change in holder.changes if not _makes(change, request_id)]
        gone = [entry for entry in (*self.waiting, *self.parked.values()) if entry.request.id == request_id]
        self.parked.pop(request_id, None)
        self.waiting = deque(entry for entry in self.waiting if entry.request.id != request_id)
        self._ids.discard(request_id)
        for entry in gone:
            self.end_forks(entry)

    def forget_job(self, job: Job) -> None:
        """Removes a job. The forks that it has not made yet fail."""
        del self.jobs[job.request.id]
        self._ids.discard(job.request.id)
        self.end_forks(job)

    def end_forks(self, source: Job | Waiting) -> None:
        """Fails the forks that a video has not made: it has ended, or cannot begin."""
        for fork in pending_forks(source):
            error = StateError(f"video {source.request.id!r}, which it continues, ended before its next chunk boundary")
            self.late.append(self.failure(fork.id, error))

    def clear(self) -> None:
        """Forgets all videos but jobs, and what happened since the last step."""
        for collection in (self.waiting, self.parked, self.late, self._ids):
            collection.clear()

    def failure(self, request_id: str, error: Exception) -> RequestFailure:
        """Logs, counts and forgets a video that ended without its frames or could not begin; returns what to tell."""
        logger.debug("where video %s failed", request_id, exc_info=error)
        error = presentable(error)
        logger.error("video %s failed: %s", request_id, error)
        self.num_failed += 1
        self._ids.discard(request_id)
        return RequestFailure(request_id, error)

    def take_late(self) -> list[EngineOutput]:
        """What happened since the last step; it is forgotten here."""
        late, self.late = self.late, []
        return late


def pending_forks(holder: Job | Waiting) -> list[Continuation]:
    """The forks that wait for the next chunk boundary of a video."""
    return [change for change in holder.changes if isinstance(change, Continuation)]


def _makes(change: Change, request_id: str) -> bool:
    return isinstance(change, Continuation) and change.id == request_id

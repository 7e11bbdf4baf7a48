"""The roster: every video that an engine knows, by the id of its request."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator
from typing import Any

from pagedvid.engine.failures import presentable
from pagedvid.engine.job import Job
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
        self._next_number = 0

    def require_new(self, request_id: str) -> None:
        """Raises ConfigError for an id that is in use."""
        if request_id in self.jobs or request_id in self.parked or request_id in set(self._waiting_ids()):
            raise ConfigError(f"request {request_id!r} is still waiting or running; use another id, or cancel it first")

    def next_number(self) -> int:
        """The number of the next job."""
        self._next_number += 1
        return self._next_number - 1

    def job(self, request_id: str) -> Job | None:
        """The job of a video; None: it has not begun. Raises ConfigError for an unknown id."""
        if request_id in self.jobs:
            return self.jobs[request_id]
        if request_id in self.parked or request_id in set(self._waiting_ids()):
            return None
        raise ConfigError(
            f"request {request_id!r} is neither waiting nor running"
            "; videos that have ended are forgotten unless their request says keep=True"
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
        """Lets it wait again, behind those that wait now."""
        if request_id in self.parked:
            self.waiting.append(self.parked.pop(request_id))

    def clear(self) -> None:
        """Forgets what has not begun, and what happened since the last step."""
        self.waiting.clear()
        self.parked.clear()
        self.late.clear()

    def forget_entry(self, request_id: str) -> None:
        """Removes a video that has not begun."""
        for job in self.jobs.values():
            job.changes = [change for change in job.changes if not _makes(change, request_id)]
        self.parked.pop(request_id, None)
        self.waiting = deque(entry for entry in self.waiting if entry.request.id != request_id)

    def forget_job(self, job: Job) -> None:
        """Removes a job. The forks that it has not made yet fail."""
        del self.jobs[job.request.id]
        for fork in pending_forks(job):
            error = StateError(f"video {job.request.id!r}, which it continues, ended before its next chunk boundary")
            self.late.append(self.failure(fork.id, error))

    def failure(self, request_id: str, error: Exception) -> RequestFailure:
        """Logs and counts a failure."""
        logger.debug("where video %s failed", request_id, exc_info=error)
        error = presentable(error)
        logger.error("video %s failed: %s", request_id, error)
        self.num_failed += 1
        return RequestFailure(request_id, error)

    def take_late(self) -> list[EngineOutput]:
        """What happened since the last step."""
        late, self.late = self.late, []
        return late

    def _waiting_ids(self) -> Iterator[str]:
        yield from (entry.request.id for entry in self.waiting)
        yield from (fork.id for job in self.jobs.values() for fork in pending_forks(job))


def pending_forks(job: Job) -> list[Continuation]:
    """Those that wait for the job's next chunk boundary."""
    return [change for change in job.changes if isinstance(change, Continuation)]


def _makes(change: Any, request_id: str) -> bool:
    return isinstance(change, Continuation) and change.id == request_id

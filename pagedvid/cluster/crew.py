"""The workers of a job: each one that ends is replaced, and what they say comes in one place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from itertools import count
from threading import TIMEOUT_MAX
from typing import Any

from pagedvid.cluster.remote_worker import RemoteWorker
from pagedvid.errors import WorkerError
from pagedvid.service.stats import DEAD, WorkerStats

DEATHS_PER_WORKER = 3
"""Workers that may end before any of them has made anything, for each worker of the crew."""


@dataclass(frozen=True)
class Started:
    """A worker can be asked."""

    worker: int


@dataclass(frozen=True)
class Told:
    """What a worker has said since the last time; perhaps nothing."""

    worker: int
    events: list[Any]
    stats: WorkerStats


@dataclass(frozen=True)
class Lost:
    """A worker has ended; another one is on its way unless too many have ended."""

    worker: int
    reason: str


News = Started | Told | Lost


@dataclass
class _Member:
    worker: RemoteWorker
    answer: Future[Any]
    """Of `start`, and then of one `events` after the other."""
    is_started: bool = False


class Crew:
    """So many workers, by numbers that are never given twice."""

    def __init__(self, start_worker: Callable[[], RemoteWorker], num_workers: int) -> None:
        self._start_worker, self._numbers = start_worker, count()
        self._members: dict[int, _Member] = {}
        self._most_deaths = DEATHS_PER_WORKER * num_workers
        self._num_deaths = 0
        self._was_started = False
        for _ in range(num_workers):
            self._add()

    def __len__(self) -> int:
        return len(self._members)

    def __getitem__(self, worker: int) -> RemoteWorker:
        return self._members[worker].worker

    def wait(self, seconds: float) -> list[News]:
        """What has happened, as soon as anything has, or after so many seconds.

        Raises the error of building the first engine, because every other worker would meet it, too.
        """
        wait([member.answer for member in self._members.values()], seconds, FIRST_COMPLETED)
        answered = [(number, member) for number, member in self._members.items() if member.answer.done()]
        return [self._news(number, member) for number, member in answered]

    def reset_deaths(self) -> None:
        """Something was made or decided: the workers that have ended so far do not count any more."""
        self._num_deaths = 0

    def stop(self) -> Iterator[Told]:
        """Ends all workers after their present steps, and gives what they still have to say."""
        started = {number: member for number, member in self._members.items() if member.is_started}
        wait([member.worker.stop(seconds=TIMEOUT_MAX) for member in started.values()])
        for number, member in started.items():
            try:
                while (told := member.answer.result())[0]:
                    yield Told(number, *told)
                    member.answer = member.worker.events()
            except WorkerError:  # its process has ended before; whoever resumes makes its videos again
                continue

    def kill(self) -> None:
        """Ends all processes at once."""
        for member in self._members.values():
            member.worker.kill()
        self._members.clear()

    def _add(self) -> None:
        worker = self._start_worker()
        self._members[next(self._numbers)] = _Member(worker, worker.start())

    def _news(self, number: int, member: _Member) -> News:
        error = member.answer.exception()
        if error is not None:
            if not (self._was_started or isinstance(error, WorkerError)):
                raise error
            return self._lose(number, str(error))
        if not member.is_started:
            member.is_started = self._was_started = True
            member.answer = member.worker.events()
            return Started(number)
        events, stats = member.answer.result()
        if stats.state == DEAD and not events:
            return self._lose(number, stats.reason)
        member.answer = member.worker.events()
        return Told(number, events, stats)

    def _lose(self, number: int, reason: str) -> Lost:
        self._members.pop(number).worker.kill()  # it may only be out of reach
        self._num_deaths += 1
        if self._num_deaths < self._most_deaths:
            self._add()
        return Lost(number, reason)

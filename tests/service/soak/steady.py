"""Those who compare: videos of the catalogue come out as in the quiet run, whatever else happens."""

from __future__ import annotations

import random
import time

from pagedvid.errors import PagedvidError
from pagedvid.service.records import COMPLETED, NewFork
from tests.service.soak.catalogue import Entry, content_of, delete, wait_until_done
from tests.service.soak.users import Shared


class Onlooker:
    """Makes videos of the catalogue that nobody touches."""

    def __init__(self, shared: Shared, entries: list[Entry], randomness: random.Random) -> None:
        self._shared, self._entries, self._random = shared, entries, randomness
        self.num_compared = 0

    def run(self) -> None:
        while not self._shared.is_over:
            entry = self._random.choice(self._entries)
            try:
                id = self._shared.service.sessions.create(entry.new).id
            except PagedvidError:  # it is full, or between two starts
                time.sleep(0.05)
                continue
            try:
                self._disturb(id)
                self._compare(id, entry)
                delete(self._shared.service, id)
            except Exception as error:
                self._shared.find(f"a video that nobody touched: {type(error).__name__}: {error}")

    def _disturb(self, id: str) -> None:
        """Nothing."""

    def _compare(self, id: str, entry: Entry) -> None:
        service = self._shared.service
        record = wait_until_done(service, id)
        if record.state != COMPLETED:
            self._shared.find(f"{id}, which was safe from faults, is {record.state}: {record.error}")
        elif self._content(id) != entry.content:
            self._shared.find(f"{id} with {record.chunks_done} chunks is not as in the quiet run")
        self.num_compared += 1

    def _content(self, id: str) -> bytes:
        """Over restarts."""
        while True:
            try:
                return content_of(self._shared.service.sessions, id)
            except PagedvidError:
                time.sleep(0.05)


class Meddler(Onlooker):
    """Pauses, resumes and forks them, which changes none of their frames."""

    def _disturb(self, id: str) -> None:
        for _ in range(self._random.randrange(6)):
            time.sleep(self._random.uniform(0.0, 0.1))
            sessions = self._shared.service.sessions
            try:
                self._random.choice((sessions.pause, sessions.resume, self._fork))(id)
            except PagedvidError as error:
                self._shared.calls[f"meddling: {type(error).__name__}"] += 1
        self._wake(id)

    def _fork(self, id: str) -> None:
        (fork,) = self._shared.service.sessions.fork(id, [NewFork(prompt="1")])
        self._shared.add(fork.id)

    def _wake(self, id: str) -> None:
        """Lets a paused one go on, over restarts."""
        while self._shared.service.sessions is not None:
            try:
                if self._shared.service.sessions.get(id).state == "paused":
                    self._shared.service.sessions.resume(id)
                return
            except PagedvidError:
                time.sleep(0.05)

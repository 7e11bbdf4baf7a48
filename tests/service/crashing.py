"""A process that works on a folder and dies at one of the moments that matter: before or after a write to disk.

Its last act at the given moment is `os._exit`, as sudden as kill -9. Everything a verb has returned until then is in a
log, one JSON line each, because that is what the service has promised. So is every prompt and every deletion that was
asked for: it may count although the process died before the verb returned.
"""

from __future__ import annotations

import json
import os
import random
import threading
from contextlib import suppress
from pathlib import Path
from unittest import mock

from pagedvid.errors import PagedvidError
from pagedvid.service import session_files
from pagedvid.service.database import Database
from pagedvid.service.records import NewFork
from tests.service.services import Service, new

CRASHED = 9


class Moments:
    """Counts the moments; at the chosen one the process ends."""

    def __init__(self, last: int) -> None:
        self._left = last
        self._lock = threading.Lock()

    def pass_one(self) -> None:
        with self._lock:
            self._left -= 1
            if self._left < 0:
                os._exit(CRASHED)

    def around(self, function):
        def call(*args, **kwargs):
            self.pass_one()
            result = function(*args, **kwargs)
            self.pass_one()
            return result

        return call


def work(folder: Path, log: Path, seed: int, last_moment: int) -> None:
    """Random verbs until the moment has come; at most a few dozen."""
    moments = Moments(last_moment)
    for owner, name in (
        (session_files.SessionFiles, "append"),
        (session_files.SessionFiles, "copy_video"),
        (session_files.SessionFiles, "remove"),
        (session_files.SessionFiles, "remove_other_checkpoints"),
        (os, "fsync"),
        (os, "replace"),
        (Database, "_commit"),
    ):
        mock.patch.object(owner, name, moments.around(getattr(owner, name))).start()
    service = Service(folder)
    with log.open("a") as file:
        Client(service, random.Random(seed), file).run()
    os._exit(0)


class Client:
    def __init__(self, service: Service, random_: random.Random, log) -> None:
        self._service, self._random, self._log = service, random_, log
        self._ids: list[str] = [record.id for record in service.sessions.list(100).records]

    def run(self) -> None:
        for number in range(25):
            verb = self._random.choice(
                [self._create, self._fork, self._prompt, self._extend, self._delete, self._create]
            )
            with suppress(PagedvidError):  # then nothing is promised
                (verb if self._ids else self._create)(number)

    def _say(self, verb: str, **what) -> None:
        self._log.write(json.dumps({"verb": verb, **what}) + "\n")
        self._log.flush()

    def _one(self) -> str:
        return self._random.choice(self._ids)

    def _create(self, number: int) -> None:
        made = self._service.sessions.create(new(f"p{number}", 4 * self._random.randint(1, 10), seed=number))
        self._ids.append(made.id)
        self._say("create", id=made.id, prompt=made.prompt, num_frames=made.num_frames, seed=number)

    def _fork(self, number: int) -> None:
        source = self._one()
        num_frames = self._service.sessions.get(source).num_frames + 8
        for made in self._service.sessions.fork(source, [NewFork(f"f{number}", 1000 + number, num_frames)] * 2):
            self._ids.append(made.id)
            self._say("fork", id=made.id, source=source, prompt=made.prompt, num_frames=made.num_frames, seed=made.seed)

    def _prompt(self, number: int) -> None:
        id, prompt = self._one(), f"q{number}"
        self._say("ask for a prompt", id=id, prompt=prompt)
        self._service.sessions.prompt(id, prompt)

    def _extend(self, number: int) -> None:
        id = self._one()
        num_frames = self._service.sessions.get(id).num_frames + 8
        self._service.sessions.extend(id, num_frames)
        self._say("extend", id=id, num_frames=num_frames)

    def _delete(self, number: int) -> None:
        if self._random.random() < 0.3:
            id = self._one()
            self._say("ask to delete", id=id)
            try:
                self._service.sessions.delete(id)
            except PagedvidError:
                self._say("refuse to delete", id=id)
                raise
            self._ids.remove(id)
            self._say("delete", id=id)

"""Users of the service: each does one random thing after another, as long as the soak lasts."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable

from pagedvid.errors import PagedvidError
from pagedvid.service.records import NewFork, NewSession
from pagedvid.service.session_events import ChunkRecorded, SessionEvent
from pagedvid.service.sessions import Sessions
from tests.engine.toy_model import FRAMES_PER_CHUNK
from tests.service.soak.faults import FIRST_SAFE_PROMPT, KINDS
from tests.service.soak.toy_service import ToyService

MOST_CHUNKS = 40
MOST_SESSIONS = 16
"""Of all users together; beyond it they delete before they create."""
LIVE_SPEEDS = (8.0, 60.0, 500.0)
FAULT_SECONDS = 1.0
"""Between two faults, on average."""
_FAULTS_OF_PROMPTS = (*[""] * 17, " raises@0.5", " raises@0.0", " nan@0.0")
"""Some prompts break their own video, and some seeds; see the toy model."""
_SEEDS = (*range(20), -5)


class Shared:
    """What the threads of a soak have in common."""

    def __init__(self, service: ToyService, seconds: float) -> None:
        self.service = service
        self.end = time.monotonic() + seconds
        self.findings: list[str] = []
        """What should not have happened."""
        self.calls: Counter[str] = Counter()
        """Calls that went well, and errors that were expected, by name."""
        self._ids: list[str] = []
        self._lock = threading.Lock()

    @property
    def is_over(self) -> bool:
        return time.monotonic() >= self.end

    def find(self, what: str) -> None:
        self.findings.append(what)

    def add(self, *ids: str) -> None:
        with self._lock:
            self._ids += ids
        self.service.faults.victims.update(ids)

    def remove(self, id: str) -> None:
        with self._lock:
            if id in self._ids:
                self._ids.remove(id)
        self.service.faults.victims.discard(id)

    def ids(self) -> list[str]:
        with self._lock:
            return list(self._ids)


class User:
    """Acts on the victims that all users share, with the errors that the sessions document."""

    def __init__(self, shared: Shared, randomness: random.Random) -> None:
        self._shared, self._random = shared, randomness
        self._actions: list[tuple[int, Callable[[str], None]]] = [
            (8, self._create),
            (4, self._pause),
            (6, self._resume),
            (5, self._prompt),
            (5, self._fork),
            (3, self._extend),
            (5, self._played),
            (5, self._delete),
            (5, self._watch),
            (5, self._read),
            (5, self._download),
        ]

    def run(self) -> None:
        weights, actions = zip(*self._actions, strict=True)
        while not self._shared.is_over:
            (act,) = self._random.choices(actions, weights)
            ids = self._shared.ids()
            if not ids:
                act = self._create
            elif len(ids) > MOST_SESSIONS:
                act = self._delete
            name = act.__name__.strip("_")
            try:
                act(self._random.choice(ids) if ids else "")
                self._shared.calls[name] += 1
            except PagedvidError as error:  # IntegrityError included: a verb that met a fault
                self._shared.calls[f"{name}: {type(error).__name__}"] += 1
            except Exception as error:
                self._shared.find(f"{name} raised {type(error).__name__}: {error}")
            time.sleep(self._random.expovariate(1 / 0.01))

    def _create(self, id: str) -> None:
        new = NewSession(
            self._any_prompt(),
            self._random.randint(1, MOST_CHUNKS) * FRAMES_PER_CHUNK - self._random.randrange(FRAMES_PER_CHUNK),
            self._random.choice(_SEEDS),
            live_frames_per_second=self._random.choice((None, *LIVE_SPEEDS)),
            priority=self._random.randrange(3),
            kind=self._random.choice(("video", "session")),
        )
        self._shared.add(self._sessions.create(new).id)

    def _pause(self, id: str) -> None:
        self._sessions.pause(id)

    def _resume(self, id: str) -> None:
        self._sessions.resume(id)

    def _prompt(self, id: str) -> None:
        self._sessions.prompt(id, self._any_prompt(), recache=self._random.random() < 0.5)

    def _fork(self, id: str) -> None:
        forks = [
            NewFork(
                self._random.choice((None, self._any_prompt())),
                self._random.choice((None, self._random.randrange(100))),
                self._random.choice((None, self._random.randint(1, MOST_CHUNKS) * FRAMES_PER_CHUNK)),
            )
            for _ in range(self._random.randint(1, 3))
        ]
        self._shared.add(*(record.id for record in self._sessions.fork(id, forks)))

    def _extend(self, id: str) -> None:
        self._sessions.extend(id, self._random.randint(1, MOST_CHUNKS) * FRAMES_PER_CHUNK)

    def _played(self, id: str) -> None:
        self._sessions.played(id, self._random.randrange(MOST_CHUNKS * FRAMES_PER_CHUNK))

    def _delete(self, id: str) -> None:
        self._sessions.delete(id)
        self._shared.remove(id)

    def _read(self, id: str) -> None:
        """Everything that a client may look at."""
        sessions = self._sessions
        sessions.list(self._random.randint(1, 5), newest_first=self._random.random() < 0.5)
        sessions.stats()
        sessions.credit_seconds(id)
        recording = sessions.recording(id)
        if recording.chunks:
            assert sessions.frames(id, recording.chunks[-1].index).shape[0] == recording.chunks[-1].num_frames

    def _download(self, id: str) -> None:
        """Refused for most, which are not complete."""
        self._sessions.whole_file(id)

    def _watch(self, id: str) -> None:
        """A client that comes, reads at its own speed, slowly perhaps, and goes away without a word."""
        sessions, told = self._sessions, []

        def take(event: SessionEvent) -> None:
            told.append(event)
            if len(told) > 10:
                raise ConnectionResetError("the client is gone")

        unsubscribe = sessions.subscribe(id, take)
        sessions.client_came(id)
        try:
            pause_seconds = self._random.choice((0.0, 0.01, 0.1))
            next_chunk, end = 0, time.monotonic() + self._random.uniform(0.0, 0.6)
            while time.monotonic() < end:
                for chunk in sessions.recording(id, next_chunk).chunks:
                    sessions.played(id, chunk.first_frame)
                    next_chunk = chunk.index + 1
                    time.sleep(pause_seconds)
                time.sleep(0.01)
        finally:
            sessions.client_left(id)
            unsubscribe()
        starts = [event.first_frame for event in told if isinstance(event, ChunkRecorded)]
        if starts != sorted(set(starts)):
            self._shared.find(f"the chunks of {id} were told in the order {starts}")

    @property
    def _sessions(self) -> Sessions:
        return self._shared.service.sessions

    def _any_prompt(self) -> str:
        return f"{self._random.randrange(FIRST_SAFE_PROMPT)}{self._random.choice(_FAULTS_OF_PROMPTS)}"


def arm_faults(shared: Shared, randomness: random.Random) -> None:
    """Arms one fault after another."""
    while not shared.is_over:
        time.sleep(randomness.expovariate(1 / FAULT_SECONDS))
        shared.service.faults.arm(randomness.choice(KINDS), randomness)

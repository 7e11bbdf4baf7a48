"""Random histories of verbs, stops and kills: after every action each session stands as it should, and in the end it
has exactly the frames of its course.

The engine rests between two actions, so it is known from which chunk on each of them counts. A kill is a copy of the
folder, from which another service goes on.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache
from itertools import count
from pathlib import Path

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pagedvid.engine.states import RUNNING, WAITING
from pagedvid.output.fragments import fragment, init_segment
from pagedvid.service.records import NewFork, SessionRecord
from pagedvid.service.session_events import ChunkRecorded, SessionState
from tests.service.fake_engine import FRAMES_PER_CHUNK, ROUNDS_PER_CHUNK, chunk_frames, next_digest
from tests.service.services import LIMITS, VIDEO, Service, new

CHUNKS = st.integers(1, 6)
STEPS = st.integers(0, 4)
"""That the engine takes before an action."""
NO_LIMITS = replace(LIMITS, max_queued=1000, max_live=1000)
MOST_STEPS = 2000

Course = list[tuple[int, str]]
"""(Seed, prompt) of each chunk."""


@dataclass
class Expected:
    """How a session should stand."""

    course: Course
    is_paused: bool = False

    def change_from(self, chunk: int, seed: int, prompt: str, num_chunks: int) -> Course:
        return [*self.course[:chunk], *[(seed, prompt)] * (num_chunks - chunk)]


class Histories(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.numbers = count()
        self.expected: dict[str, Expected] = {}
        self.service = Service(self.folder / "first", NO_LIMITS, steps=0)
        for is_live in (False, True):
            self.create(0, 8, is_live)

    def teardown(self) -> None:
        if not hasattr(self, "service"):
            return
        try:
            self._end()
        finally:
            self.service.close()
            shutil.rmtree(self.folder)

    def _end(self) -> None:
        for id, expected in self.expected.items():
            if expected.is_paused:
                self.service.sessions.resume(id)
                expected.is_paused = False
        self._step(MOST_STEPS)
        self.everything_stands_as_it_should()
        assert {self._session(id).state for id in self.expected} <= {"completed"}
        assert not self.service.sessions.stats().videos, "every video gave its pages back"
        assert {path.name for path in (self.service.folder / "sessions").iterdir()} == set(self.expected)

    @invariant()
    def everything_stands_as_it_should(self) -> None:
        if not hasattr(self, "service"):
            return
        self.service.settle()
        assert {it.id for it in self.service.sessions.list(1000).records} == set(self.expected)
        for id, expected in self.expected.items():
            session = self._session(id)
            assert session.num_chunks == len(expected.course)
            assert session.error is None
            assert (session.state == "paused") == expected.is_paused
            if session.state == "completed":
                assert session.chunks_done == session.num_chunks
            if session.chunks_done > 0:
                assert self.service.content(id) == file_of_course(expected.course[: session.chunks_done])
            self._check_news(session)

    # ------------------------------------------------------------------ verbs

    @rule(steps=STEPS, num_chunks=CHUNKS, is_live=st.booleans())
    def create(self, steps: int, num_chunks: int, is_live: bool) -> None:
        self._step(steps)
        number = next(self.numbers)
        speed = 1000 if is_live else None
        frames = num_chunks * FRAMES_PER_CHUNK
        made = self.service.sessions.create(new(f"p{number}", frames, number, live_frames_per_second=speed))
        self.expected[made.id] = Expected([(number, made.prompt)] * num_chunks)

    @precondition(lambda self: self.expected)
    @rule(steps=STEPS, data=st.data())
    def prompt(self, steps: int, data) -> None:
        self._step(steps)
        id, prompt = self._one(data), f"q{next(self.numbers)}"
        expected, chunk = self.expected[id], self._next_chunk(id)
        if chunk is not None:
            session = self.service.sessions.prompt(id, prompt)
            expected.course = expected.change_from(chunk, session.seed, prompt, session.num_chunks)

    @precondition(lambda self: self.expected)
    @rule(steps=STEPS, data=st.data(), more=CHUNKS)
    def fork(self, steps: int, data, more: int) -> None:
        self._step(steps)
        id, prompt = self._one(data), f"f{next(self.numbers)}"
        source, chunk = self._session(id), self._next_chunk(id)
        if chunk is None and source.state != "completed":
            return
        shared = source.num_chunks if chunk is None else chunk
        num_chunks = source.num_chunks + more
        (made,) = self.service.sessions.fork(id, [NewFork(prompt, next(self.numbers), num_chunks * FRAMES_PER_CHUNK)])
        self.expected[made.id] = Expected(self.expected[id].change_from(shared, made.seed, prompt, num_chunks))

    @precondition(lambda self: self.expected)
    @rule(steps=STEPS, data=st.data(), more=CHUNKS)
    def extend(self, steps: int, data, more: int) -> None:
        self._step(steps)
        id = self._one(data)
        session = self._session(id)
        if session.state == "completed" or self._next_chunk(id) is not None:
            self.service.sessions.extend(id, (session.num_chunks + more) * FRAMES_PER_CHUNK)
            self.expected[id].course += [(session.seed, session.prompt)] * more

    @precondition(lambda self: self.expected)
    @rule(steps=STEPS, data=st.data())
    def pause_or_resume(self, steps: int, data) -> None:
        self._step(steps)
        id = self._one(data)
        expected = self.expected[id]
        if expected.is_paused:
            self.service.sessions.resume(id)
        elif (chunk := self._next_chunk(id)) is not None and chunk < len(expected.course):
            self.service.sessions.pause(id)
        else:
            return  # no boundary is left at which it would rest
        expected.is_paused = not expected.is_paused

    @precondition(lambda self: len(self.expected) > 2)
    @rule(steps=STEPS, data=st.data())
    def delete(self, steps: int, data) -> None:
        self._step(steps)
        id = self._one(data)
        if not self.service.sessions._forks.pending_of(id):
            self.service.sessions.delete(id)
            assert SessionState(id, "cancelled") in self.service.events
            del self.expected[id]

    # ------------------------------------------------------------------ ends

    @precondition(lambda self: self.has_acted)
    @rule(steps=STEPS, is_killed=st.booleans())
    def end_and_start(self, steps: int, is_killed: bool) -> None:
        self._step(steps)
        if is_killed and self._pending_forks():
            return  # such a fork begins at a later boundary after a kill; see test_restart.py
        folder = self.service.folder
        if is_killed:
            folder = shutil.copytree(folder, self.folder / f"{next(self.numbers)}")
        self.service.close()
        self._start(folder)

    # ------------------------------------------------------------------ inside

    def _start(self, folder: Path) -> None:
        """Another service, which makes again what it has to: until then, verbs would wait for it."""
        self.service = Service(folder, NO_LIMITS, steps=0)
        self.service.settle()
        steps = 0
        while self._is_behind():
            self._step(1)
            steps += 1
            assert steps < MOST_STEPS, "some video never gets to where it was"
        self.has_acted = False

    def _step(self, steps: int) -> None:
        """Lets the engine take so many steps, or as many as there are to be taken."""
        self.has_acted = True
        self.service.let(steps)
        self.service.settle()
        while self.service.steps_left > 0 and self._has_work():
            self.service.settle()
        self.service.steps_left = 0

    def _has_work(self) -> bool:
        return any(status.state in (WAITING, RUNNING) for status in self.service.sessions.stats().videos)

    def _is_behind(self) -> bool:
        return any(
            status.num_output_frames < self._session(status.id).frames_done
            or (status.state == WAITING and self._num_rounds(status.id) > 0)  # its last prompt may still wait
            for status in self.service.sessions.stats().videos
        )

    def _session(self, id: str) -> SessionRecord:
        return self.service.sessions.get(id)

    def _one(self, data) -> str:
        return data.draw(st.sampled_from(list(self.expected)))

    def _num_rounds(self, id: str) -> int:
        return self.service.engines[-1].videos_by_id[id].num_rounds

    def _pending_forks(self) -> set[str]:
        return set(self.service.sessions._forks._pending)

    def _next_chunk(self, id: str) -> int | None:
        """The chunk that an unfinished session begins next; None: it is completed, or a fork that has not begun."""
        if self._session(id).state == "completed" or id in self._pending_forks():
            return None
        return -(-self._num_rounds(id) // ROUNDS_PER_CHUNK)

    def _check_news(self, session: SessionRecord) -> None:
        """Of each chunk since the service began, listeners were told once, in order."""
        told = [it.chunk_index for it in self.service.events if isinstance(it, ChunkRecorded) and it.id == session.id]
        assert told == list(range(session.chunks_done))[session.chunks_done - len(told) :]


def file_of_course(course: Sequence[tuple[int, str]]) -> bytes:
    """The file of a video with these chunks."""
    digest, content = 0, init_segment(2, 2, Fraction(VIDEO.frames_per_second))
    for index, (seed, prompt) in enumerate(course):
        digest = next_digest(digest, seed, prompt)
        content += _fragment(digest, index)
    return content


@cache
def _fragment(digest: int, index: int) -> bytes:
    frames = chunk_frames(digest, FRAMES_PER_CHUNK)
    return fragment(frames, index * FRAMES_PER_CHUNK, Fraction(VIDEO.frames_per_second), index + 1)


Histories.TestCase.settings = settings(
    max_examples=15,
    phases=[Phase.explicit, Phase.generate],  # a failure is reported as it was found: shrinking takes minutes
    stateful_step_count=15,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestHistories = Histories.TestCase

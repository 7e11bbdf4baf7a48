"""Two videos of a supervised engine that is asked for changes at chosen places and broken at chosen steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from pagedvid.engine.engine import Engine
from pagedvid.engine.requests import Continuation, EngineOutput, VideoRequest
from pagedvid.errors import ConfigError, StateError
from pagedvid.service.supervised_engine import SupervisedEngine
from pagedvid.service.verbs import Verbs
from tests.service.fake_engine import FakeEngine, MemoryFiles
from tests.service.listener import Listener

MOST_STEPS = 300
WHEN_IDLE = 1000

Course = list[tuple[str, int, Callable[[Verbs], object]]]
"""Verbs in their order, each with the video and the number of rounds, after the first verb's, of which it comes."""

COURSES: dict[str, Course] = {
    "nothing": [],
    "prompt": [("a", 0, lambda verbs: verbs.prompt("a", "3", False))],
    "prompt with recache": [("a", 0, lambda verbs: verbs.prompt("a", "3", True))],
    "two prompts at once": [
        ("a", 0, lambda verbs: verbs.prompt("a", "3", False)),
        ("a", 0, lambda verbs: verbs.prompt("a", "4", False)),
    ],
    "two prompts": [
        ("a", 0, lambda verbs: verbs.prompt("a", "3", False)),
        ("a", 1, lambda verbs: verbs.prompt("a", "4", False)),
    ],
    "prompts far apart": [
        ("a", 0, lambda verbs: verbs.prompt("a", "3", False)),
        ("a", 4, lambda verbs: verbs.prompt("a", "4", False)),
    ],
    "forks": [
        ("a", 0, lambda verbs: verbs.fork("a", [Continuation("b", "3"), Continuation("c", seed=5, num_frames=24)]))
    ],
    "fork, then prompt": [
        ("a", 0, lambda verbs: verbs.fork("a", [Continuation("b")])),
        ("a", 0, lambda verbs: verbs.prompt("a", "3", False)),
    ],
    "prompt, then fork, then prompt of the fork": [
        ("a", 0, lambda verbs: verbs.prompt("a", "3", False)),
        ("a", 0, lambda verbs: verbs.fork("a", [Continuation("b", num_frames=28)])),
        ("b", 5, lambda verbs: verbs.prompt("b", "4", False)),
    ],
    "extension": [("a", 0, lambda verbs: verbs.extend("a", 28))],
    "extension at the end": [("a", WHEN_IDLE, lambda verbs: verbs.extend("a", 28))],
    "pause and resume": [
        ("a", 0, lambda verbs: verbs.pause("a")),
        ("a", WHEN_IDLE, lambda verbs: verbs.resume("a")),
    ],
    "checkpoint": [("a", 0, lambda verbs: verbs.checkpoint("a", Path("a")))],
    "prompt, then checkpoint": [
        ("a", 0, lambda verbs: verbs.prompt("a", "3", False)),
        ("a", 0, lambda verbs: verbs.checkpoint("a", Path("a"))),
    ],
}


class Run:
    """Video "a" has 20 frames and is kept; "other" has as many."""

    def __init__(
        self,
        course: str = "nothing",
        begin: int = 0,
        faults: Mapping[int, Exception] | None = None,
        snapshot_every_chunks: int | None = None,
        *,
        prompt: str = "1",
        build: Callable[[], Engine] = FakeEngine,
        is_late: bool = False,
    ) -> None:
        """`begin`: rounds of "a" before the first verb of the course. `faults`: raised by these steps. `is_late`: at
        their end, when what they made is lost."""
        self.faults = dict(faults or {})
        self._build, self._is_late = build, is_late
        self.num_steps = 0
        self.listener = Listener()
        files = MemoryFiles()
        self.supervised = SupervisedEngine(
            self._breaking_engine,
            self.listener,
            checkpoints=lambda engine: files,
            snapshot_every_chunks=snapshot_every_chunks,
            build_delays_seconds=(0.0,),
        )
        self.verbs = Verbs(self.supervised)
        self._waiting = [(id, begin + rounds, verb) for id, rounds, verb in COURSES[course]]
        self.verbs.submit(VideoRequest("other", "2", 20, seed=9))
        self.verbs.submit(VideoRequest("a", prompt, 20, keep=True))
        self._ask()
        while self.supervised.has_work and self.num_steps < MOST_STEPS:
            self.supervised.step()
            self.num_steps += 1
            self._ask()

    def _ask(self) -> None:
        """Makes the verbs that are due; as a worker, it waits until frames that were given out are there again."""
        while self._waiting:
            id, num_rounds, verb = self._waiting[0]
            is_due = self._rounds_of(id) >= num_rounds or not self.supervised.has_work
            if self.supervised.is_behind(id) or not is_due:
                return
            del self._waiting[0]
            verb(self.verbs)

    def _rounds_of(self, id: str) -> int:
        try:
            return self.supervised.engine.checkpoint(id).num_rounds_done
        except (ConfigError, StateError):
            return -1  # a fork that has not begun

    def _breaking_engine(self) -> Engine:
        engine = self._build()
        whole_step = engine.step

        def step() -> list[EngineOutput]:
            outputs = whole_step() if self._is_late else []
            if self.num_steps in self.faults:
                raise self.faults.pop(self.num_steps)
            return outputs if self._is_late else whole_step()

        engine.step = step
        return engine

    @property
    def frames(self) -> dict[str, np.ndarray]:
        return {id: self.listener.frames(id) for id in self.listener.chunks}

    @property
    def states(self) -> dict[str, str]:
        return {status.id: status.state for status in self.supervised.book.statuses}

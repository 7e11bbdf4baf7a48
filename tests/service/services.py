"""Services over the fake engine, which tests hold and let go, and what their videos must be."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np

from pagedvid.output.fragments import fragment, init_segment
from pagedvid.service.records import NewSession, SessionLimits, SessionRecord, VideoFormat
from pagedvid.service.recovery import CheckpointFiles
from pagedvid.service.session_events import SessionEvent
from pagedvid.service.sessions import Sessions
from pagedvid.service.worker import Worker
from tests.service.disk_files import DiskFiles
from tests.service.fake_engine import FRAMES_PER_CHUNK, FakeEngine
from tests.service.listener import wait_until

VIDEO = VideoFormat(frames_per_second=16.0, frames_per_chunk=FRAMES_PER_CHUNK)
LIMITS = SessionLimits(max_queued=50, max_live=5, verb_seconds=20)


class Gated:
    """An engine that takes steps while it may: all of them, or so many. Verbs come between."""

    service: Service
    num_gated_steps = 0

    @property
    def has_work(self) -> bool:
        return self.service.steps_left > 0 and super().has_work

    def step(self):
        self.service.steps_left -= 1
        self.num_gated_steps += 1
        return super().step()


class GatedEngine(Gated, FakeEngine):
    pass


class Service:
    """Sessions in a folder; another one may follow in the same folder."""

    checkpoint_files: CheckpointFiles = DiskFiles()

    def __init__(
        self, folder: Path, limits: SessionLimits = LIMITS, fault=None, settings: str = "", steps=float("inf")
    ):
        """`steps`: that the engine takes before `let` is called. `fault`: called with the engine at every step."""
        self.folder = folder
        self.steps_left = steps
        self.fault = fault or (lambda engine: None)
        self.events: list[SessionEvent] = []
        self.engines: list[Gated] = []
        self.sessions = Sessions(folder, self._build_worker, VIDEO, limits, settings=settings)
        self.sessions.subscribe(None, self.events.append)
        self.sessions.start()

    def _build_worker(self, tell) -> Worker:
        files = self.checkpoint_files
        self._worker = Worker(self._build_engine, tell, checkpoints=lambda engine: files, build_delays_seconds=(0.0,))
        return self._worker

    def _build_engine(self) -> Gated:
        self.engines.append(self.make_engine())
        self.engines[-1].service = self
        return self.engines[-1]

    def make_engine(self) -> Gated:
        return GatedEngine(self.fault)

    def let(self, steps: float = float("inf")) -> None:
        """Lets the engine take so many more steps."""
        self.steps_left += steps
        self._worker._inbox.wake()

    def settle(self) -> None:
        """Waits until everything that the engine did is recorded, and what follows from it done."""
        for _ in range(3):
            self._worker.pause("nobody").exception(20)
            self.sessions._parts.recorder.call(lambda: None)
            done = threading.Event()
            self.sessions._housekeeper._jobs.put((lambda id, done=done: done.set(), ""))
            assert done.wait(20)

    def wait_for_steps(self, number: int) -> None:
        wait_until(lambda: self.engines[-1].num_gated_steps == number)

    def close(self) -> None:
        self.sessions.close(20)

    def wait_for(self, id: str, state: str = "completed") -> SessionRecord:
        wait_until(lambda: self.sessions.get(id).state == state)
        return self.sessions.get(id)

    def wait_for_chunks(self, id: str, number: int) -> None:
        wait_until(lambda: self.sessions.get(id).chunks_done >= number)

    def content(self, id: str) -> bytes:
        recording = self.sessions.recording(id)
        return recording.path.read_bytes()[: recording.end]

    def names(self, id: str) -> set[str]:
        return {path.name for path in (self.folder / "sessions" / id).iterdir()}


def new(prompt: str = "a", num_frames: int = 10, seed: int = 3, **more) -> NewSession:
    return NewSession(prompt, num_frames, seed, **more)


def file_of(frames: np.ndarray, sizes: Sequence[int] | None = None) -> bytes:
    """The file of a video whose chunks have these sizes; None: the usual ones, and what is left."""
    rate = Fraction(VIDEO.frames_per_second)
    if sizes is None:
        whole, rest = divmod(len(frames), FRAMES_PER_CHUNK)
        sizes = [FRAMES_PER_CHUNK] * whole + [rest] * (rest > 0)
    content, first = init_segment(*frames.shape[1:3], rate), 0
    for number, size in enumerate(sizes, start=1):
        content += fragment(frames[first : first + size], first, rate, number)
        first += size
    return content

"""The sessions of a service over the toy model: small enough for thousands of videos in minutes.

Its engine is reproducible, so that a video's frames do not depend on what else happens, and checks all bookkeeping in
every step. The pool has room for three videos and the host for four more: videos wait, swap, and fail to swap.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

from torch import Tensor

from pagedvid.cache.window import Window
from pagedvid.engine.checkpoint_file import Origin, load_checkpoint, save_checkpoint
from pagedvid.engine.engine import Engine
from pagedvid.engine.protocol import Attend
from pagedvid.engine.schedule import Range
from pagedvid.engine.snapshot import JobSnapshot
from pagedvid.service.events import Event
from pagedvid.service.records import SessionLimits, VideoFormat
from pagedvid.service.session_files import SessionFiles
from pagedvid.service.sessions import Sessions
from pagedvid.service.worker import Worker
from tests.engine.toy_model import FRAMES_PER_CHUNK, ToyCondition, ToyModel, toy_engine
from tests.service.soak.faults import Faults

WINDOW, CODEC, NUM_DENOISE_STEPS = (1, 1), "int2", 2
STREAM_PAGES = 24
"""Of a video at its peak: a sink, a recent and a newest chunk of 8 pages each."""
NUM_PAGES = 3 * STREAM_PAGES + STREAM_PAGES // 2
HOST_BYTES = 4 * STREAM_PAGES * 1024
LIMITS = SessionLimits(
    max_queued=30, max_live=10, max_ahead_seconds=1.0, grace_seconds=0.3, checkpoint_chunks=3, verb_seconds=30.0
)
FORMAT = VideoFormat(frames_per_second=8.0, frames_per_chunk=FRAMES_PER_CHUNK)
CLOSE_SECONDS = 20.0


@dataclass
class FaultyModel(ToyModel):
    """The toy model, whose attention layers may raise."""

    faults: Faults = field(default_factory=Faults)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.forwards = deque(maxlen=1)  # type: ignore[assignment]  # a log of hours would fill the memory

    def forward(
        self, latents_TC: Tensor, ranges: Sequence[Range], conditions: Sequence[ToyCondition], attend: Attend
    ) -> Tensor:
        def faulty(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            for condition in conditions:
                self.faults.strike_layer(condition.phase, layer)
            return attend(layer, q, k, v)

        return super().forward(latents_TC, ranges, conditions, faulty)


class ToyCheckpoints:
    """Checkpoint files of the toy model."""

    def __init__(self, faults: Faults) -> None:
        self._faults = faults
        self._origin = origin()

    def write(self, snapshot: JobSnapshot, path: Path) -> None:
        self._faults.strike_disk("checkpoint", snapshot.request.id, lambda: None)
        save_checkpoint(path, snapshot, self._origin)

    def read(self, path: Path) -> JobSnapshot:
        return load_checkpoint(path, self._origin)


class ToyService:
    """Sessions in a folder, which can be closed and opened again."""

    def __init__(self, folder: Path, faults: Faults | None = None) -> None:
        self.folder, self.faults = folder, faults or Faults()
        self.engines: deque[Engine] = deque(maxlen=1)
        """The newest one."""
        self.sessions = self._new()

    def start(self) -> None:
        self.sessions.start()

    def restart(self) -> None:
        """As a process that is stopped with SIGTERM and started again."""
        self.sessions.close(CLOSE_SECONDS)
        sessions = self._new()
        sessions.start()
        self.sessions = sessions

    def close(self) -> None:
        self.sessions.close(CLOSE_SECONDS)

    def _new(self) -> Sessions:
        return Sessions(self.folder, self._build_worker, FORMAT, LIMITS)

    def _build_worker(self, on_event: Callable[[Event], None]) -> Worker:
        has_built = False

        def build_engine() -> Engine:
            nonlocal has_built
            if has_built:  # a service that cannot even start says so and ends
                self.faults.strike_build()
            has_built = True
            self.engines.append(new_engine(self.faults))
            return self.engines[0]

        return Worker(
            build_engine, on_event, checkpoints=lambda engine: ToyCheckpoints(self.faults), snapshot_every_chunks=2
        )


def new_engine(faults: Faults) -> Engine:
    """The engine of the service."""
    return toy_engine(
        FaultyModel(faults=faults),
        CODEC,
        WINDOW,
        NUM_PAGES,
        num_denoise_steps=NUM_DENOISE_STEPS,
        policy="deadline",
        reproducible=True,
        host_memory=HOST_BYTES,
        live_admission="all",
    )


def origin() -> Origin:
    """Of its checkpoints."""
    engine = new_engine(Faults())
    return Origin("toy", engine.model.geometry, engine.cache.spec, Window(*WINDOW), NUM_DENOISE_STEPS)


@contextmanager
def disk_that_fills(faults: Faults) -> Iterator[None]:
    """Writing a chunk of a victim may fail, with half of its bytes written."""
    append = SessionFiles.append

    def faulty(self: SessionFiles, id: str, start: int, content: bytes) -> Any:
        faults.strike_disk("chunk", id, lambda: append(self, id, start, content[: len(content) // 2]))
        return append(self, id, start, content)

    with patch.object(SessionFiles, "append", faulty):
        yield

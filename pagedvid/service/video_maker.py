"""What a service asks of whoever makes its videos: one worker (worker.py), or many (replicas.py).

Each method is documented where it is defined, at `Worker`.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Protocol

from pagedvid.engine.requests import Continuation, VideoRequest
from pagedvid.service.recovery import Change, Checkpoint
from pagedvid.service.stats import WorkerStats


class VideoMaker(Protocol):
    """Verbs return futures at once; events are told to the listener that it was made with."""

    def start(self) -> None: ...  # noqa: D102

    def stop(self, *, seconds: float) -> object: ...  # noqa: D102

    def stats(self) -> WorkerStats: ...  # noqa: D102

    def submit(self, request: VideoRequest, *, frames_given: int = 0) -> Future[None]: ...  # noqa: D102

    def cancel(self, id: str) -> Future[None]: ...  # noqa: D102

    def pause(self, id: str) -> Future[None]: ...  # noqa: D102

    def resume(self, id: str) -> Future[None]: ...  # noqa: D102

    def prompt(self, id: str, prompt: str, *, recache: bool = False) -> Future[None]: ...  # noqa: D102

    def fork(self, id: str, continuations: Sequence[Continuation]) -> Future[frozenset[str]]: ...  # noqa: D102

    def extend(self, id: str, num_frames: int) -> Future[None]: ...  # noqa: D102

    def report_played(self, id: str, num_frames: int) -> Future[None]: ...  # noqa: D102

    def checkpoint(self, id: str, path: Path) -> Future[Checkpoint]: ...  # noqa: D102

    def restore(  # noqa: D102
        self, path: Path, changes: Sequence[Change] = (), *, frames_given: int = 0, id: str | None = None
    ) -> Future[str]: ...

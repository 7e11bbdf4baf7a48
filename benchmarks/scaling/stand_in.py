"""A worker that makes nothing: it agrees to everything, so that what is measured is the work of others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from pagedvid.engine.pace import TokenSeconds
from pagedvid.engine.requests import Continuation, VideoRequest, VideoStatus
from pagedvid.engine.states import RUNNING
from pagedvid.service.events import Event
from pagedvid.service.recovery import Change, Checkpoint
from pagedvid.service.stats import WORKING, Durations, PoolStats, WorkerStats

_POOL = PoolStats(1000, 4608, 500, 0, 500, 0, 0, 0, 0, 0, 0)


class StandIn:
    """See `Worker`."""

    def __init__(self, tell: Callable[[Event], None], num_videos: int = 0) -> None:
        """`tell`: for whoever wants to tell events in its name. `num_videos`: that it says it has."""
        self.tell = tell
        videos = tuple(
            VideoStatus(f"video_{number:032}", RUNNING, "a prompt", 96, 48, 48, False, None, 500, 0, 0)
            for number in range(num_videos)
        )
        queue = Durations((1.0,), (num_videos, 0), 0.0)
        self._stats = WorkerStats(
            WORKING, pool=_POOL, videos=videos, token_seconds=TokenSeconds(1e-5, 1e-5), queue=queue
        )

    def start(self) -> None:
        """Nothing to start."""

    def stop(self, *, seconds: float) -> None:
        """Nothing to stop."""

    def stats(self) -> WorkerStats:
        """Always the same."""
        return self._stats

    def submit(self, request: VideoRequest, *, frames_given: int = 0) -> Future[None]:
        """Agrees."""
        return _done(None)

    def cancel(self, id: str) -> Future[None]:
        """Agrees."""
        return _done(None)

    def pause(self, id: str) -> Future[None]:
        """Agrees."""
        return _done(None)

    def resume(self, id: str) -> Future[None]:
        """Agrees."""
        return _done(None)

    def prompt(self, id: str, prompt: str, *, recache: bool = False) -> Future[None]:
        """Agrees."""
        return _done(None)

    def fork(self, id: str, continuations: Sequence[Continuation]) -> Future[frozenset[str]]:
        """Agrees."""
        return _done(frozenset(it.id for it in continuations))

    def extend(self, id: str, num_frames: int) -> Future[None]:
        """Agrees."""
        return _done(None)

    def report_played(self, id: str, num_frames: int) -> Future[None]:
        """Agrees."""
        return _done(None)

    def checkpoint(self, id: str, path: Path) -> Future[Checkpoint]:
        """Agrees, and leaves an empty file."""
        path.touch()
        return _done(Checkpoint(id, "a prompt", 96, 48))

    def restore(
        self, path: Path, changes: Sequence[Change] = (), *, frames_given: int = 0, id: str | None = None
    ) -> Future[str]:
        """Agrees."""
        return _done(id or "")


def _done(result: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(result)
    return future

"""What the HTTP layer needs of the sessions; pagedvid/service/sessions.py provides it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from pagedvid.service.records import NewFork, NewSession, Recording, SessionPage, SessionRecord
from pagedvid.service.session_events import SessionEvent

if TYPE_CHECKING:
    from pagedvid.service.replica_stats import ReplicaStats
    from pagedvid.service.stats import WorkerStats


class SessionsLike(Protocol):
    """See `pagedvid.service.sessions.Sessions`, whose methods these are, with the errors that they raise.

    All may be called from any thread, and none of them waits for longer than it takes a worker to reach its next step
    (`fork`: the source's next chunk boundary).
    """

    def create(self, new: NewSession) -> SessionRecord: ...  # noqa: D102

    def delete(self, id: str) -> None: ...  # noqa: D102

    def pause(self, id: str) -> SessionRecord: ...  # noqa: D102

    def resume(self, id: str) -> SessionRecord: ...  # noqa: D102

    def prompt(self, id: str, prompt: str, *, recache: bool = False) -> SessionRecord: ...  # noqa: D102

    def fork(self, id: str, forks: Sequence[NewFork]) -> list[SessionRecord]: ...  # noqa: D102

    def extend(self, id: str, num_frames: int) -> SessionRecord: ...  # noqa: D102

    def played(self, id: str, num_frames: int) -> None: ...  # noqa: D102

    def client_came(self, id: str) -> None: ...  # noqa: D102

    def client_left(self, id: str) -> None: ...  # noqa: D102

    def get(self, id: str) -> SessionRecord: ...  # noqa: D102

    def list(  # noqa: D102
        self, limit: int = 20, after: str | None = None, *, newest_first: bool = True, kind: str | None = None
    ) -> SessionPage: ...

    def recording(self, id: str, first_chunk: int = 0) -> Recording: ...  # noqa: D102

    def frames(self, id: str, chunk_index: int) -> np.ndarray: ...  # noqa: D102

    def credit_seconds(self, id: str) -> float | None: ...  # noqa: D102

    def whole_file(self, id: str) -> Path: ...  # noqa: D102

    def subscribe(self, id: str | None, callback: Callable[[SessionEvent], None]) -> Callable[[], None]: ...  # noqa: D102

    def stats(self) -> WorkerStats: ...  # noqa: D102

    def replicas(self) -> Sequence[ReplicaStats]: ...  # noqa: D102

    def drain(self, number: int) -> None: ...  # noqa: D102

    def refill(self, number: int) -> None: ...  # noqa: D102

"""The life of sessions: accepted, made, watched, forked, extended, deleted, and gone on with after a restart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from pagedvid.service.records import (
    NewFork,
    NewSession,
    Recording,
    SessionEvent,
    SessionLimits,
    SessionPage,
    SessionRecord,
    VideoFormat,
)


class Sessions:
    """Owns a worker, a store and the files under `folder`. Every method may be called from any thread.

    Verbs raise the errors of pagedvid.errors that the engine raises (PromptError, ConfigError, CapacityError, ...), and
    those of service/errors.py: NotFound for an unknown id, Conflict for a state in which they are not possible, Busy
    and Closing when the service is full or ends, StorageError when the disk fails. After an error nothing has changed.
    """

    def __init__(
        self, folder: Path, build_worker: Callable[..., object], video: VideoFormat, limits: SessionLimits
    ) -> None:
        """`build_worker`: a worker that is not started yet and tells its events to the given function."""
        raise NotImplementedError

    def start(self) -> None:
        """Starts the worker; everything that was accepted and not finished goes on. Raises StorageError."""
        raise NotImplementedError

    def close(self, seconds: float) -> None:
        """Checkpoints the unfinished sessions and stops, within about this time; see `start`."""
        raise NotImplementedError

    # ------------------------------------------------------------------ verbs

    def create(self, new: NewSession) -> SessionRecord:
        """Accepts a session. Once this returns, it will be finished even after a crash. Raises Busy."""
        raise NotImplementedError

    def delete(self, id: str) -> None:
        """Cancels a session in any state and removes all of it."""
        raise NotImplementedError

    def pause(self, id: str) -> SessionRecord:
        """Pauses at the next chunk boundary. Raises Conflict for a session that has ended."""
        raise NotImplementedError

    def resume(self, id: str) -> SessionRecord:
        """Goes on, whatever it was paused for. Raises Conflict for a session that has ended."""
        raise NotImplementedError

    def prompt(self, id: str, prompt: str, *, recache: bool = False) -> SessionRecord:
        """Another prompt from the next chunk on. `recache`: what is cached is stored again under it.

        Raises Conflict for a session that has ended.
        """
        raise NotImplementedError

    def fork(self, id: str, forks: Sequence[NewFork]) -> list[SessionRecord]:
        """New sessions that share the history up to the next chunk boundary. Waits for that boundary.

        Raises Conflict for a source that failed, and Busy; all of the forks are accepted or none.
        """
        raise NotImplementedError

    def extend(self, id: str, num_frames: int) -> SessionRecord:
        """Sets the total number of frames, also of a completed session. Raises Conflict if it failed."""
        raise NotImplementedError

    def played(self, id: str, num_frames: int) -> None:
        """Reports how many output frames the viewers have seen. Nothing happens for a session that is not live."""
        raise NotImplementedError

    def client_came(self, id: str) -> None:
        """A viewer watches a session: it goes on if it was paused because there was none."""
        raise NotImplementedError

    def client_left(self, id: str) -> None:
        """A viewer is gone: a live session without any is paused after `grace_seconds`. Never raises NotFound."""
        raise NotImplementedError

    # ------------------------------------------------------------------ reading

    def get(self, id: str) -> SessionRecord:
        """How a session stands."""
        raise NotImplementedError

    def list(
        self, limit: int = 20, after: str | None = None, *, newest_first: bool = True, kind: str | None = None
    ) -> SessionPage:
        """Sessions by time of creation. `after`: the id that the page follows. Raises NotFound if it is unknown."""
        raise NotImplementedError

    def recording(self, id: str, first_chunk: int = 0) -> Recording:
        """The video so far, from a chunk on; no chunks when there are no further ones yet."""
        raise NotImplementedError

    def frames(self, id: str, chunk_index: int) -> np.ndarray:
        """A recorded chunk's frames as the video shows them, uint8 [frames, height, width, 3]. Raises NotFound."""
        raise NotImplementedError

    def credit_seconds(self, id: str) -> float | None:
        """How long the viewers can play on with what is recorded; None for a session that is not live."""
        raise NotImplementedError

    def whole_file(self, id: str) -> Path:
        """A completed video as one mp4 file with its index in front, for downloads. Raises Conflict."""
        raise NotImplementedError

    def subscribe(self, id: str | None, callback: Callable[[SessionEvent], None]) -> Callable[[], None]:
        """Calls `callback` with every event of a session, or of all (None), until the returned function is called.

        It is called in order on threads of the service and must return at once: put the event into a bounded queue,
        and drop it if that is full. Nothing is lost by a dropped event, because everything it says can be read:
        `get` tells the state and the number of chunks, `recording(id, first_chunk)` the chunks. A callback that raises
        is not called again.
        """
        raise NotImplementedError

"""What viewers do: they read recordings, come and go, and report how far they have watched."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from pagedvid.arguments import whole_number
from pagedvid.errors import ConfigError
from pagedvid.output.fragments import decoded, write_whole
from pagedvid.service.errors import Conflict, NotFound, storage_errors
from pagedvid.service.parts import Parts
from pagedvid.service.records import COMPLETED, IN_PROGRESS, PAUSED, PAUSED_WITHOUT_VIEWER, QUEUED, Recording
from pagedvid.service.session_events import CreditChanged


class Viewing:
    """Methods of `Sessions` by the same names; see there. Thread-safe."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    # ------------------------------------------------------------------ what is recorded

    def recording(self, id: str, first_chunk: int) -> Recording:
        """The video so far, from the chunk `first_chunk` on. Raises NotFound."""
        with self._parts.store.transaction():  # so that both are of one moment
            session, chunks = self._parts.store.get(id), self._parts.store.chunks.of(id, first_chunk)
        return Recording(self._parts.files.video(id), session.init_bytes, chunks)

    def frames(self, id: str, chunk_index: int) -> np.ndarray:
        """A chunk's frames, uint8 [frames, height, width, 3]. Raises NotFound and StorageError."""
        recording = self.recording(id, chunk_index)
        if chunk_index < 0 or not recording.chunks:
            raise NotFound(f"session {id} has no chunk {chunk_index} yet")
        with storage_errors():
            init, fragment = self._parts.files.read(id, recording.init_bytes, recording.chunks[0])
            return decoded(init, fragment)

    def whole_file(self, id: str) -> Path:
        """A completed video as an ordinary mp4 file. Raises NotFound, Conflict and StorageError."""
        with self._parts.locked(id):
            session = self._parts.store.get(id)
            if session.state != COMPLETED:
                raise Conflict(f"session {id} is {session.state}; a whole file exists when it is completed")
            path = self._parts.files.whole(id, session.chunks_done)
            if not path.exists():
                with storage_errors():
                    self._parts.files.remove_whole(id)
                    write_whole(self._parts.files.video(id), self._parts.store.chunks.end(id), path)
            return path

    # ------------------------------------------------------------------ who is there, and how far

    def credit_seconds(self, id: str) -> float | None:
        """How long the viewers can play on; None where nobody is waited for. Raises NotFound."""
        self._parts.store.get(id)
        audience = self._parts.audiences.get(id)
        return None if audience is None else audience.credit_seconds(time.monotonic())

    def played(self, id: str, num_frames: int) -> None:
        """The viewers have watched so many output frames. Raises NotFound and ConfigError."""
        whole_number("num_frames", num_frames, 0, error=ConfigError)
        self._parts.store.get(id)
        audience = self._parts.audiences.get(id)
        if audience is not None:
            now = time.monotonic()
            audience.report(num_frames, now)
            self._parts.worker.report_played(id, num_frames)
            self._parts.announcer.tell(CreditChanged(id, audience.credit_seconds(now)))

    def client_came(self, id: str) -> None:
        """One more viewer; a session that was paused for want of one goes on. Raises NotFound."""
        with self._parts.locked(id):
            session, audience = self._parts.store.get(id), self._parts.audiences.get(id)
            if audience is None:
                return
            audience.come()
            if session.state == PAUSED and session.pause_reason == PAUSED_WITHOUT_VIEWER:
                self._parts.set_state(id, IN_PROGRESS if session.chunks_done else QUEUED)
                self._parts.steer(id)

    def client_left(self, id: str) -> None:
        """One viewer less."""
        audience = self._parts.audiences.get(id)
        if audience is not None:
            audience.leave(time.monotonic())

"""Shared parts of the service, and the order of its locks.

Locks, in the order in which a thread may take them; it may leave some out:

1. a session's (`Parts.locked`): what a caller asks of a session, and what the housekeeper does for it, happens under
   it, one after the other;
2. those of its forks, while they depend on it;
3. the intake's, while it counts;
4. the database's, for as long as a transaction;
5. those of the recorder's gate, the inbox, the announcer and `Parts._locks`, under which nothing else is taken.

A thread that waits for the worker or the recorder may hold 1 and 2 only. The recorder's thread takes 4 and 5 only, the
worker's 5 only; the worker waits for the recorder when that falls behind. So every wait ends. It may be long
(`verb_seconds`), and may be for pages that only the housekeeper frees: so the housekeeper, and the service when it
ends, do not wait for a session's lock but try again later (`Parts.locked_within`). Listeners are called under any of
these locks; they take none of them and wait for nobody.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as Late
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar
from weakref import WeakValueDictionary

from pagedvid.engine.requests import VideoRequest
from pagedvid.errors import WorkerError
from pagedvid.service.announcer import Announcer
from pagedvid.service.audience import Audience
from pagedvid.service.chunk_pace import ChunkPace
from pagedvid.service.errors import storage_errors
from pagedvid.service.recorder import Recorder
from pagedvid.service.records import PAUSED, SessionError, SessionLimits, SessionRecord, VideoFormat
from pagedvid.service.session_events import SessionFailed, SessionState
from pagedvid.service.session_files import SessionFiles
from pagedvid.service.store import Store
from pagedvid.service.stored_courses import StoredCheckpoint

if TYPE_CHECKING:
    from pagedvid.service.video_maker import VideoMaker

R = TypeVar("R")


@dataclass
class Parts:
    """The parts of one service."""

    store: Store
    files: SessionFiles
    worker: VideoMaker
    recorder: Recorder
    announcer: Announcer
    video: VideoFormat
    limits: SessionLimits
    pace: ChunkPace = field(default_factory=ChunkPace)
    audiences: dict[str, Audience] = field(default_factory=dict)
    """The viewers of each live session that has not ended."""
    awake: set[str] = field(default_factory=set)
    """Completed sessions that are in the worker again, so that forks can be made of them."""
    paused: set[str] = field(default_factory=set)
    """Sessions that are paused in the worker."""

    deadline: float = math.inf
    """By `time.monotonic`: from then on nobody waits for anything."""

    def __post_init__(self) -> None:
        self._locks = WeakValueDictionary[str, threading.RLock]()  # gone with the last who has or wants it
        self._locks_lock = threading.Lock()

    @contextmanager
    def locked(self, id: str) -> Iterator[None]:
        """Holds the session's lock during the block."""
        with self._lock(id):
            yield

    @contextmanager
    def locked_within(self, seconds: float, id: str) -> Iterator[bool]:
        """Holds the session's lock during the block if it gets free in this time; gives whether it did."""
        lock = self._lock(id)
        has_lock = lock.acquire(timeout=seconds)
        try:
            yield has_lock
        finally:
            if has_lock:
                lock.release()

    def _lock(self, id: str) -> threading.RLock:
        with self._locks_lock:
            return self._locks.setdefault(id, threading.RLock())

    def remove(self, id: str) -> None:
        """Removes what there is of a session: first the row, so that a restart removes the rest. Raises
        StorageError."""

        def remove() -> None:
            self.store.delete(id)
            with storage_errors():
                self.files.remove(id)

        self.recorder.call(remove)
        self.audiences.pop(id, None)
        self.paused.discard(id)
        self.awake.discard(id)

    def wait(self, future: Future[R]) -> R:
        """The result of one of the worker's verbs. Raises its error, and WorkerError when it takes too long."""
        seconds = min(self.limits.verb_seconds, self.seconds_left())
        try:
            return future.result(seconds)
        except Late:
            future.cancel()
            raise WorkerError(f"the worker has not come to it in {seconds:.3g} seconds; try again later") from None

    def seconds_left(self) -> float:
        """Seconds until `deadline`, at least 0."""
        return max(0.0, self.deadline - time.monotonic())

    def take_checkpoint(self, id: str) -> StoredCheckpoint:
        """Writes where a session is to a new file, which counts when the store says so. Raises StorageError, and what
        the worker raises."""
        with storage_errors():
            name = self.files.new_checkpoint_name(id)
            saved = self.wait(self.worker.checkpoint(id, self.files.checkpoint(id, name)))
        return StoredCheckpoint(name, saved.num_output_frames, saved.prompt, saved.num_frames)

    def install(self, id: str, checkpoint: StoredCheckpoint, state: str | None = None) -> None:
        """The session goes on from this checkpoint now, and is in this state with it. Raises StorageError.

        Frames that were made before it are recorded by then: the worker told them earlier. While they wait in the
        recorder, the checkpoint before stays.
        """

        def write() -> None:
            if self.recorder.is_held(id):
                return
            with self.store.transaction():
                self.store.courses.set_checkpoint(id, checkpoint)
                if state is not None:
                    self.store.set_state(id, state)

        self.recorder.call(write)
        self.remove_old_checkpoints(id)

    def remove_old_checkpoints(self, id: str) -> None:
        """Removes the files from which a session does not go on any more. Raises StorageError."""
        checkpoint = self.store.courses.checkpoint(id)
        if checkpoint is not None:
            with storage_errors():
                self.files.remove_other_checkpoints(id, checkpoint.name)

    def watch(self, session: SessionRecord) -> None:
        """Begins to follow the viewers of a session, if it is live."""
        if session.live_frames_per_second is not None:
            self.audiences[session.id] = Audience(
                session.live_frames_per_second,
                session.frames_done,
                time.monotonic(),
                self.limits.max_ahead_seconds,
                self.limits.grace_seconds,
            )

    def request_of(self, session: SessionRecord) -> VideoRequest:
        """The session as a request for the worker. The video keeps its pages until its last checkpoint is written."""
        inputs = dict(session.inputs)
        if session.reference_kind is not None:
            inputs[session.reference_kind] = str(self.files.reference(session.id))
        return VideoRequest(
            session.id,
            session.prompt,
            session.num_frames,
            session.seed,
            inputs,
            session.priority,
            session.live_frames_per_second,
            keep=True,
            later_prompts=session.later_prompts,
        )

    def steer(self, id: str) -> None:
        """Pauses a session in the worker or lets it go on, as its state and its viewers want. Under its lock."""
        session, audience = self.store.find(id), self.audiences.get(id)
        if session is None:
            return
        wants_pause = session.state == PAUSED or (audience is not None and audience.should_wait(time.monotonic()))
        if wants_pause and id not in self.paused:
            self.wait(self.worker.pause(id))
            self.paused.add(id)
        elif not wants_pause and id in self.paused:
            self.wait(self.worker.resume(id))
            self.paused.discard(id)

    def set_state(self, id: str, state: str, pause_reason: str | None = None) -> None:
        """Sets and announces another state. Raises StorageError."""
        self.store.set_state(id, state, pause_reason)
        self.announcer.tell(SessionState(id, state))

    def fail(self, id: str, error: SessionError) -> None:
        """Ends a session without its remaining frames. Never raises."""
        self.store.fail(id, error)
        self.audiences.pop(id, None)
        self.worker.cancel(id)  # nothing may be there to cancel
        self.announcer.tell(SessionFailed(id, error))

"""The life of sessions: accepted, made, watched, forked, extended, deleted, and gone on with after a restart.

Three threads work together. The worker's makes frames; the recorder's writes them (recorder.py); the housekeeper's
does what nobody asks for (housekeeper.py). Callers bring their own.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pagedvid.engine.failures import described
from pagedvid.errors import ConfigError, PagedvidError, WorkerError
from pagedvid.service.announcer import Announcer
from pagedvid.service.bookkeeper import Bookkeeper
from pagedvid.service.courses import Courses
from pagedvid.service.errors import Closing, storage_errors
from pagedvid.service.events import Event, VideoEvent
from pagedvid.service.folder_lock import FolderLock
from pagedvid.service.forks import Forks
from pagedvid.service.housekeeper import Housekeeper
from pagedvid.service.intake import Asked, Intake
from pagedvid.service.parts import Parts
from pagedvid.service.recorder import Recorder
from pagedvid.service.records import (
    QUEUED,
    NewFork,
    NewSession,
    Recording,
    SessionLimits,
    SessionPage,
    SessionRecord,
    VideoFormat,
)
from pagedvid.service.replicas import Replicas
from pagedvid.service.restart import Restart
from pagedvid.service.session_events import SessionEvent
from pagedvid.service.session_files import SessionFiles
from pagedvid.service.steering import Steering
from pagedvid.service.store import Store
from pagedvid.service.viewing import Viewing

if TYPE_CHECKING:
    from pagedvid.service.replica_stats import ReplicaStats
    from pagedvid.service.stats import WorkerStats
    from pagedvid.service.video_maker import VideoMaker

logger = logging.getLogger(__name__)


class Sessions:
    """Owns a worker, a store and the files under a folder. Every method may be called from any thread.

    Verbs raise the errors of pagedvid.errors that the engine raises (PromptError, ConfigError, CapacityError, ...), and
    those of service/errors.py: NotFound for an unknown id, Conflict for a state in which they are not possible, Busy
    and Closing when the service is full or ends, StorageError when the disk fails. After an error nothing has changed.
    """

    def __init__(
        self,
        folder: Path,
        build_worker: Callable[[Callable[[Event], None]], VideoMaker],
        video: VideoFormat,
        limits: SessionLimits | None = None,
        *,
        settings: str = "",
    ) -> None:
        """`build_worker`: makes a worker that tells its events to the given function, and does not start it.
        `settings`: what decides the frames of a request; videos that were begun with others begin anew.

        Raises StorageError, also when another process has the folder, and ConfigError for a speed of videos that no
        file can have.
        """
        self._settings, self._is_closing = settings, False
        self._lock = FolderLock(folder)
        try:
            with storage_errors():
                files = SessionFiles(folder / "sessions")
            store = Store(folder / "pagedvid.sqlite", video)
        except BaseException:
            self._lock.release()
            raise
        recorder = Recorder(lambda event: self._bookkeeper.record(event), lambda event: self._secure(event))
        worker = build_worker(recorder.tell)
        self._parts = parts = Parts(store, files, worker, recorder, Announcer(), video, limits or SessionLimits())
        self._forks = Forks(parts)
        self._intake = Intake(parts)
        self._courses = Courses(parts, self._forks, self._intake)
        self._steering = Steering(parts, self._forks)
        self._viewing = Viewing(parts)
        self._housekeeper = Housekeeper(parts, self._forks)
        self._restart = Restart(parts, self._forks, self._housekeeper.do)
        self._bookkeeper = Bookkeeper(parts, self._housekeeper.end, self._housekeeper.progress, self._restart.lose)

    def start(self) -> None:
        """Starts the worker; everything that was accepted and not finished goes on. Raises StorageError, and what
        building the engine raises.

        A session that cannot go on, because its checkpoint is of another model or version, begins anew if its request
        alone decides its frames, and has failed otherwise.
        """
        given = self._restart.prepare(self._settings)
        self._parts.recorder.start()
        self._parts.worker.start()
        self._housekeeper.start()
        self._restart.follow(given)

    def close(self, seconds: float) -> None:
        """Checkpoints the sessions that are under way and stops, within about this time.

        Sessions whose checkpoints do not get ready go on from older ones at the next start.
        """
        self._is_closing = True
        self._parts.deadline = time.monotonic() + seconds
        self._housekeeper.stop(self._parts.seconds_left())
        try:
            self._checkpoint_all()
        except PagedvidError as error:
            logger.warning("sessions go on from older checkpoints: %s", described(error))
        try:
            self._parts.worker.stop(seconds=self._parts.seconds_left())
        except PagedvidError as error:
            logger.warning("the worker did not end in time: %s", described(error))
        self._parts.recorder.stop()
        self._parts.store.close()
        self._lock.release()

    def _checkpoint_all(self) -> None:
        unfinished = self._parts.store.unfinished()
        begun = [it for it in unfinished if it.state != QUEUED and not self._forks.is_pending(it.id)]
        ids = [it.id for it in sorted(begun, key=lambda it: not it.is_live)]
        busy = [id for id in ids if not self._checkpoint_within(0.0, id)]  # a verb waits for them, perhaps for long
        for id in busy:
            if not self._checkpoint_within(self._parts.seconds_left(), id):
                logger.warning("session %s goes on from its last checkpoint: one of its verbs still waits", id)

    def _checkpoint_within(self, seconds: float, id: str) -> bool:
        """Whether the session's lock got free in this time; then it was tried."""
        with self._parts.locked_within(seconds, id) as has_lock:
            if not has_lock:
                return False
            try:
                if self._parts.seconds_left() <= 0:
                    raise WorkerError("the time to stop is over")
                self._parts.install(id, self._parts.take_checkpoint(id))
            except PagedvidError as error:
                logger.warning("session %s goes on from its last checkpoint: %s", id, described(error))
            return True

    # ------------------------------------------------------------------ verbs

    def create(self, new: NewSession) -> SessionRecord:
        """Accepts a session. Once this returns, it will be finished even after a crash. Raises Busy."""
        self._require_open()
        return self._intake.accept([Asked(new)], self._intake.submit)[0]

    def delete(self, id: str) -> None:
        """Cancels a session in any state and removes all of it. Raises Conflict while it is being forked."""
        self._require_open()
        self._steering.delete(id)

    def pause(self, id: str) -> SessionRecord:
        """Pauses at the next chunk boundary. Raises Conflict for a session that has ended."""
        self._require_open()
        return self._steering.pause(id)

    def resume(self, id: str) -> SessionRecord:
        """Goes on, whatever it was paused for. Raises Conflict for a session that has ended."""
        self._require_open()
        return self._steering.resume(id)

    def prompt(self, id: str, prompt: str, *, recache: bool = False) -> SessionRecord:
        """Another prompt from the next chunk on. `recache`: what is cached is stored again under it.

        Raises Conflict for a session that has ended, and for a fork that has not begun.
        """
        self._require_open()
        self._courses.prompt(id, prompt, recache)
        return self.get(id)

    def fork(self, id: str, forks: Sequence[NewFork]) -> list[SessionRecord]:
        """New sessions that share the history up to the source's next chunk boundary, where they get its frames.

        Raises Conflict for a source that failed or is a fork that has not begun, and Busy; all of the forks are
        accepted or none.
        """
        self._require_open()
        return self._courses.fork(id, forks)

    def extend(self, id: str, num_frames: int) -> SessionRecord:
        """Sets the total number of frames, also of a completed session. Raises Conflict if it failed or is a fork that
        has not begun, and ConfigError unless there are more of them."""
        self._require_open()
        self._courses.extend(id, num_frames)
        return self.get(id)

    def played(self, id: str, num_frames: int) -> None:
        """Reports how many output frames the viewers have seen. Nothing happens for a session that is not live.

        Raises ConfigError for more frames than are recorded.
        """
        self._viewing.played(id, num_frames)

    def client_came(self, id: str) -> None:
        """A viewer watches a session: it goes on if it was paused because there was none."""
        self._viewing.client_came(id)

    def client_left(self, id: str) -> None:
        """A viewer is gone: a live session without any is paused after `grace_seconds`. Never raises NotFound."""
        self._viewing.client_left(id)

    # ------------------------------------------------------------------ reading

    def get(self, id: str) -> SessionRecord:
        """How a session stands."""
        return self._parts.store.get(id)

    def list(
        self, limit: int = 20, after: str | None = None, *, newest_first: bool = True, kind: str | None = None
    ) -> SessionPage:
        """Sessions by time of creation. `after`: the id that the page follows. Raises NotFound if it is unknown."""
        return self._parts.store.page(limit, after, newest_first, kind)

    def recording(self, id: str, first_chunk: int = 0) -> Recording:
        """The video so far, from a chunk on; no chunks when there are no further ones yet."""
        return self._viewing.recording(id, first_chunk)

    def frames(self, id: str, chunk_index: int) -> np.ndarray:
        """A recorded chunk's frames as the video shows them, uint8 [frames, height, width, 3]. Raises NotFound."""
        return self._viewing.frames(id, chunk_index)

    def credit_seconds(self, id: str) -> float | None:
        """How long the viewers can play on with what is recorded; None for a session that is not live or has ended."""
        return self._viewing.credit_seconds(id)

    def whole_file(self, id: str) -> Path:
        """A completed video as one mp4 file with its index in front, for downloads. Raises Conflict."""
        return self._viewing.whole_file(id)

    def stats(self) -> WorkerStats:
        """The worker's numbers after its latest step, or those of all together."""
        return self._parts.worker.stats()

    # ------------------------------------------------------------------ several workers

    def replicas(self) -> Sequence[ReplicaStats]:
        """The numbers of each worker; none where there is only one."""
        worker = self._parts.worker
        return worker.replicas() if isinstance(worker, Replicas) else []

    def drain(self, number: int) -> None:
        """A replica gets no new session, and its sessions move to others, each from a checkpoint. It is empty when
        `replicas` says so. Raises ConfigError when there is no other one."""
        for id in self._several_workers().drain(number):
            self._housekeeper.do(self._restart.move, id)

    def refill(self, number: int) -> None:
        """A drained replica takes sessions again. Raises ConfigError when there is no such replica."""
        self._several_workers().refill(number)

    def _several_workers(self) -> Replicas:
        worker = self._parts.worker
        if not isinstance(worker, Replicas):
            raise ConfigError("the service has one worker; start it with --replicas to have several")
        return worker

    # ------------------------------------------------------------------ events

    def subscribe(self, id: str | None, callback: Callable[[SessionEvent], None]) -> Callable[[], None]:
        """Calls `callback` with every event of a session, or of all (None), until the returned function is called.

        It is called in order on threads of the service and must return at once: put the event into a bounded queue,
        and drop it if that is full. Nothing is lost by a dropped event, because everything it says can be read:
        `get` tells the state and the number of chunks, `recording(id, first_chunk)` the chunks. A callback that raises
        is not called again.
        """
        return self._parts.announcer.subscribe(id, callback)

    def _secure(self, event: VideoEvent) -> None:
        self._forks.note(event)
        self._housekeeper.secure(event.id)

    def _require_open(self) -> None:
        if self._is_closing:
            raise Closing(self._parts.seconds_left())

"""The loop of `pagedvid generate`: events of a worker become video files; a video that fails does not stop the others.

The worker makes videos on its thread, and builds its engine again when that breaks. This thread writes what comes.
Every error of a video, expected or not, is caught where the loop handles that video. Only a worker whose engine is gone
for good stops the run early; the videos that are finished by then count.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from threading import TIMEOUT_MAX
from time import monotonic

from pagedvid.cli.engine_watch import EngineWatch
from pagedvid.cli.messages import one_line, reason, reason_told
from pagedvid.cli.progress import ProgressView, Status
from pagedvid.cli.run_result import RunResult
from pagedvid.cli.terminal import Interrupt
from pagedvid.cli.threads import ThreadChoice
from pagedvid.cli.video_files import VideoFiles
from pagedvid.engine.engine import Engine
from pagedvid.engine.requests import VideoRequest
from pagedvid.errors import CapacityError, WorkerError
from pagedvid.output.folder import OutputFolder
from pagedvid.service.event_queue import EventQueue
from pagedvid.service.events import ChunkEvent, Event, FailureEvent, RebuiltEvent
from pagedvid.service.stats import DEAD
from pagedvid.service.worker import Worker

MAX_IN_ENGINE = 256
"""Videos that the engine knows at once, waiting ones included: each of them costs a little of every step."""
MAX_UNWRITTEN = 16
"""Chunks that wait to be written; the worker waits while there are more."""
LOOK_SECONDS = 0.1
"""How often the worker is looked after while no event comes."""
LEAVE_SECONDS = 1.0
"""What the present step is given when the run is abandoned."""


@dataclass
class VideoRun:
    """Makes the videos of `requests` with one worker, into one folder."""

    build_engine: Callable[[], Engine]
    """Called on the worker's thread, and again when the engine breaks."""
    folder: OutputFolder
    requests: Sequence[VideoRequest]
    view: ProgressView
    frames_per_second: float | None
    """Playing speed of the videos; None: the model's own."""
    scale: int
    versions: Mapping[str, str]
    threads: ThreadChoice | None = None
    """None: the number of threads stays as it is."""
    require_all: Callable[[], None] = lambda: None
    """Called again and again; raises an error that ends the run."""

    def __post_init__(self) -> None:
        self._watch = EngineWatch(self.build_engine, self.threads)
        self._files = VideoFiles(
            self.folder, self.requests, self.view, self._watch, self.frames_per_second, self.scale, self.versions
        )
        self._events = EventQueue[Event](MAX_UNWRITTEN)
        self._worker = Worker(self._watch.build, self._hear, take_step=self._watch.take_step)
        self._unsubmitted: deque[VideoRequest] = deque()
        self._submitted: deque[tuple[str, Future[None]]] = deque()
        """Not answered yet."""
        self._num_chunks = 0

    def run(self) -> RunResult:
        """Runs until every video has ended, the user interrupts or no engine works; unfinished files are removed.

        Raises what building the engine raises, and `CapacityError` when the pool is too small for any of the videos.
        """
        try:
            self._worker.start()
            self._files.started = monotonic()
            self._num_chunks = sum(-(-request.num_frames // self._watch.frames_per_chunk) for request in self.requests)
            with Interrupt(self.view.note) as interrupt:
                self._make_videos(interrupt)
        finally:
            self._files.discard_unfinished()
            self._events.let_all_in()
            with suppress(WorkerError):  # the second Ctrl-C does not wait for a long step
                self._worker.stop(seconds=LEAVE_SECONDS)
        return self._files.result

    def _make_videos(self, interrupt: Interrupt) -> None:
        self._end_refused()
        self._show_status()
        while self._files.pending and not interrupt.requested and self._worker.stats().state != DEAD:
            self.require_all()
            self._submit_some()
            self._take(self._events.take(LOOK_SECONDS))
            self._show_status()
        self.require_all()
        self._events.let_all_in()
        self._worker.stop(seconds=TIMEOUT_MAX)  # after its step, whose frames count
        while event := self._events.take(0):
            self._take(event)
        if (stats := self._worker.stats()).state == DEAD:
            self.view.note(f"stopped {one_line(stats.reason)}")
        result = self._files.result
        result.num_left, result.was_interrupted = len(self._files.pending), interrupt.requested
        result.pool, result.fullest = self._watch.pool, self._watch.fullest
        result.seconds = self._files.seconds

    # ------------------------------------------------------------------ into the worker

    def _end_refused(self) -> None:
        """Ends the videos that cannot be made before any is made; the others are to be submitted."""
        refusals = self._worker.refusals(self.requests).result()
        if len(refusals) == len(self.requests) and all(isinstance(it, CapacityError) for it in refusals.values()):
            raise next(iter(refusals.values()))
        for id, refusal in refusals.items():
            self._end(id, refusal)
        self._unsubmitted.extend(self._files.pending.values())

    def _submit_some(self) -> None:
        while self._unsubmitted and len(self._files.pending) - len(self._unsubmitted) < MAX_IN_ENGINE:
            request = self._unsubmitted.popleft()
            self._submitted.append((request.id, self._worker.submit(request)))
        while self._submitted and self._submitted[0][1].done():
            id, answer = self._submitted.popleft()
            error = answer.exception()
            if isinstance(error, Exception) and not isinstance(error, WorkerError):
                self._end(id, error)

    # ------------------------------------------------------------------ out of the worker

    def _hear(self, event: Event) -> None:
        """On the worker's thread."""
        if isinstance(event, ChunkEvent | FailureEvent | RebuiltEvent):
            self._events.put(event)

    def _take(self, event: Event | None) -> None:
        if isinstance(event, RebuiltEvent):
            self.view.note(f"rebuilt the engine, which broke: {one_line(event.reason)}")
        elif isinstance(event, ChunkEvent | FailureEvent) and event.id in self._files.pending:
            self._take_of_video(event)  # of one that could not be written, more may come

    def _take_of_video(self, event: ChunkEvent | FailureEvent) -> None:
        if isinstance(event, FailureEvent):
            self._files.fail(event.id, event.kind, event.message, reason_told(event.kind, event.message))
            return
        try:
            self._files.write(event)
        except Exception as error:
            self._worker.cancel(event.id)  # refused if this was its last chunk
            self._end(event.id, error)

    def _end(self, id: str, error: Exception) -> None:
        self._files.fail(id, type(error).__name__, str(error), reason(error))

    # ------------------------------------------------------------------ progress

    def _show_status(self) -> None:
        files, pool = self._files, self._watch.pool
        self.view.update(
            Status(
                videos_ended=files.result.num_done + files.result.num_failed,
                num_videos=len(self.requests),
                chunks_done=files.chunks_done,
                num_chunks=self._num_chunks,
                pages_used=pool.pages_used if pool else 0,
                num_pages=pool.num_pages if pool else 0,
                frames_per_second=files.frames_done / max(files.seconds, 1e-9),
            )
        )

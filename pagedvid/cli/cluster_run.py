"""The loop of `pagedvid generate --ray`: workers on many devices make the videos, and this process keeps the books.

It hands out prompts, gives finished files their names, writes the manifest and shows the progress. Frames never come
here: workers encode their videos and upload them (cluster/file_outlet.py). The videos of a worker that ends are made
again by others.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

from pagedvid.cli.input_files import with_absolute_paths
from pagedvid.cli.messages import one_line, reason, reason_told
from pagedvid.cli.progress import ProgressView, Status
from pagedvid.cli.run_result import RunResult
from pagedvid.cli.terminal import Interrupt
from pagedvid.cluster.assignments import MAX_TRIES, Assignments
from pagedvid.cluster.crew import Crew, Lost, News, Started, Told
from pagedvid.cluster.file_outlet import FileEvent, ProgressEvent
from pagedvid.cluster.remote_worker import RemoteWorker
from pagedvid.engine.requests import VideoRequest
from pagedvid.engine.states import RUNNING
from pagedvid.errors import CapacityError, WorkerError
from pagedvid.service.events import FailureEvent, RebuiltEvent, StateEvent
from pagedvid.service.stats import PoolStats

LOOK_SECONDS = 0.1
"""How often an interrupt is looked for while no worker says anything."""


class ResultFolder(Protocol):
    """Where results go: a folder of this machine, or one at a URL."""

    def accept(self, request: VideoRequest, name: str, details: Mapping[str, Any]) -> None:
        """Gives a complete file, uploaded under a temporary name, its final one, and writes that its video is done."""
        ...

    def record_failed(self, request: VideoRequest, kind: str, message: str) -> None:
        """Writes that a video has ended with an error."""
        ...

    def discard_unfinished(self) -> None:
        """Removes what workers have uploaded and nobody has accepted."""
        ...


@dataclass(frozen=True)
class VideoFacts:
    """What is the same for all videos of a run."""

    frames_per_second: float
    frames_per_chunk: int
    """Latent frames."""
    versions: Mapping[str, str]


class ClusterRun:
    """Makes the videos of `requests` with a crew of workers, into one folder."""

    def __init__(
        self,
        start_worker: Callable[[], RemoteWorker],
        num_workers: int,
        folder: ResultFolder,
        requests: Sequence[VideoRequest],
        view: ProgressView,
        facts: VideoFacts,
    ) -> None:
        self._start_worker, self._num_workers = start_worker, num_workers
        self._folder, self._view, self._facts = folder, view, facts
        self._pending = {request.id: request for request in requests}
        self._num_videos = len(requests)
        self._assignments = Assignments(map(with_absolute_paths, requests), num_workers)
        self._refusals: Future[dict[str, Exception]] | None = None
        self._is_checked = False
        self._submitted: deque[tuple[int, str, Future[None]]] = deque()
        """Not answered yet."""
        self._num_chunks = sum(-(-request.num_frames // facts.frames_per_chunk) for request in requests)
        self._chunks_done = 0
        self._chunks_of: Counter[str] = Counter()
        """Made of each video that has not ended."""
        self._pools: dict[int, PoolStats] = {}
        self._frames_done, self._started = 0, time.monotonic()
        self._result = RunResult()

    def run(self) -> RunResult:
        """Runs until every video has ended, the user interrupts or no worker is left.

        Raises what building the first engine raises, and `CapacityError` when the pool is too small for all videos.
        """
        self._crew = Crew(self._start_worker, self._num_workers)
        try:
            with Interrupt(self._view.note) as interrupt:
                while self._pending and len(self._crew) and not interrupt.requested:
                    for news in self._crew.wait(LOOK_SECONDS):
                        self._take(news)
                    self._take_answers()
                    self._show_status()
                if interrupt.requested:
                    for told in self._crew.stop():
                        self._hear(told)
        finally:
            self._crew.kill()
            self._folder.discard_unfinished()
        self._result.num_left, self._result.was_interrupted = len(self._pending), interrupt.requested
        self._result.seconds = self._seconds
        return self._result

    # ------------------------------------------------------------------ from the crew

    def _take(self, news: News) -> None:
        if isinstance(news, Started):
            self._begin(news.worker)
        elif isinstance(news, Told):
            self._hear(news)
            self._submit_some(news.worker)
        else:
            self._lose(news)

    def _begin(self, worker: int) -> None:
        if self._refusals is None:
            self._started = time.monotonic()
            self._refusals = self._crew[worker].refusals(list(map(with_absolute_paths, self._pending.values())))

    def _hear(self, told: Told) -> None:
        if told.stats.pool is not None:
            self._pools[told.worker] = told.stats.pool
        for event in told.events:
            if isinstance(event, RebuiltEvent):
                self._view.note(f"worker {told.worker} rebuilt its engine, which broke: {one_line(event.reason)}")
            elif self._assignments.is_held(event.id, told.worker):  # of one that has ended, more may come
                self._hear_of_video(event, told.worker)

    def _hear_of_video(self, event: Any, worker: int) -> None:
        if isinstance(event, StateEvent) and event.state == RUNNING:
            self._assignments.admit(event.id)
        elif isinstance(event, ProgressEvent):
            self._crew.reset_deaths()
            self._chunks_of[event.id] += 1
            self._chunks_done += 1
            self._frames_done += event.num_frames
            self._assignments.progress(event.id, self._facts.frames_per_chunk)
        elif isinstance(event, FileEvent):
            self._finish(event)
        elif isinstance(event, FailureEvent):
            self._crew[worker].cancel(event.id)  # refused unless only its file failed
            self._fail(event.id, event.kind, event.message, reason_told(event.kind, event.message))

    def _lose(self, lost: Lost) -> None:
        self._pools.pop(lost.worker, None)
        again, given_up = self._assignments.lose(lost.worker)
        for id in [*again, *given_up]:
            self._chunks_done -= self._chunks_of.pop(id, 0)
        self._view.note(f"lost    worker {lost.worker}, {len(again)} videos begin again: {one_line(lost.reason)}")
        for id in given_up:
            self._crew.reset_deaths()
            message = f"{MAX_TRIES} workers ended while they made this video, the last one because {lost.reason}"
            self._close(id, WorkerError.__name__, message, one_line(message))
        if not self._is_checked:
            self._refusals = None

    # ------------------------------------------------------------------ to the workers

    def _submit_some(self, worker: int) -> None:
        while self._is_checked and (request := self._assignments.take(worker)):
            self._submitted.append((worker, request.id, self._crew[worker].submit(request)))

    def _take_answers(self) -> None:
        if self._refusals is not None and self._refusals.done() and not self._is_checked:
            self._check(self._refusals)
        for _ in range(len(self._submitted)):
            worker, id, answer = self._submitted.popleft()
            if not answer.done():
                self._submitted.append((worker, id, answer))
                continue
            error = answer.exception()
            if not isinstance(error, Exception) or isinstance(error, WorkerError):
                continue  # submitted, or its worker has ended
            if self._assignments.is_held(id, worker):
                self._fail(id, type(error).__name__, str(error), reason(error))

    def _check(self, answer: Future[dict[str, Exception]]) -> None:
        """Ends the videos that cannot be made before any is made."""
        if isinstance(answer.exception(), WorkerError):
            self._refusals = None  # the next worker is asked
            return
        refusals = answer.result()
        if len(refusals) == self._num_videos and all(isinstance(it, CapacityError) for it in refusals.values()):
            raise next(iter(refusals.values()))
        for id, refusal in refusals.items():
            self._fail(id, type(refusal).__name__, str(refusal), reason(refusal))
        self._is_checked = True

    # ------------------------------------------------------------------ ends of videos

    def _finish(self, file: FileEvent) -> None:
        request = self._pending[file.id]
        details = {
            "frames_per_second": self._facts.frames_per_second,
            "seconds_after_start": round(self._seconds, 3),
            "cache_peak_bytes": file.stored_bytes,
            "cache_bf16_bytes": file.bf16_bytes,
            "versions": dict(self._facts.versions),
        }
        try:
            self._folder.accept(request, file.name, details)
        except Exception as error:
            self._fail(file.id, type(error).__name__, str(error), reason(error))
            return
        self._assignments.end(file.id)
        del self._pending[file.id]
        self._chunks_of.pop(file.id, None)
        self._result.num_done += 1
        self._result.num_frames += file.num_frames
        self._result.stored_bytes += file.stored_bytes
        self._result.bf16_bytes += file.bf16_bytes
        self._view.note(f"done    {file.id}  {file.num_frames} frames")

    def _fail(self, id: str, kind: str, message: str, shown: str) -> None:
        self._assignments.end(id)
        self._close(id, kind, message, shown)

    def _close(self, id: str, kind: str, message: str, shown: str) -> None:
        """Ends a video without a file. The manifest gets kind and message of the error, the view what is `shown`."""
        request = self._pending.pop(id)
        self._result.num_failed += 1
        self._view.note(f"failed  {id}  {shown}")
        try:
            self._folder.record_failed(request, kind, message)
        except Exception as error:
            self._view.note(f"        the manifest could not be written: {reason(error)}")

    # ------------------------------------------------------------------ progress

    @property
    def _seconds(self) -> float:
        """Since the first engine was ready."""
        return time.monotonic() - self._started

    def _show_status(self) -> None:
        self._view.update(
            Status(
                videos_ended=self._num_videos - len(self._pending),
                num_videos=self._num_videos,
                chunks_done=self._chunks_done,
                num_chunks=self._num_chunks,
                pages_used=sum(pool.used_pages for pool in self._pools.values()),
                num_pages=sum(pool.num_pages for pool in self._pools.values()),
                frames_per_second=self._frames_done / max(self._seconds, 1e-9),
            )
        )

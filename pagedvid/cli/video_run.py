"""The loop of `pagedvid generate`: engine outputs go into video files; what fails is noted and the rest goes on."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pagedvid.cli.interrupt import Interrupt
from pagedvid.cli.progress import ProgressView, Status
from pagedvid.engine.requests import ChunkOutput, RequestFailure, VideoRequest
from pagedvid.errors import CapacityError, PagedvidError
from pagedvid.output.folder import OutputFolder
from pagedvid.output.latents import LatentWriter
from pagedvid.output.video import WRITE_ERRORS, VideoWriter

if TYPE_CHECKING:
    from pagedvid.cache.stats import CacheStats
    from pagedvid.engine.engine import Engine


@dataclass
class RunResult:
    """What a run did."""

    num_done: int = 0
    num_failed: int = 0
    num_left: int = 0
    """Videos that an interrupt left unmade."""
    num_frames: int = 0
    """Frames of the videos that were finished."""
    seconds: float = 0.0
    stored_bytes: int = 0
    """Sum of the finished videos' peak cache bytes."""
    bf16_bytes: int = 0
    """The same tokens as dense BF16."""
    pool: CacheStats | None = None
    """The cache at the end; None when nothing ran."""
    fullest: CacheStats | None = None
    """The cache when it held the most bytes; None when nothing was committed."""


@dataclass
class VideoRun:
    """Makes the videos of `requests` with one engine, into one folder."""

    engine: Engine
    folder: OutputFolder
    requests: Sequence[VideoRequest]
    view: ProgressView
    frames_per_second: float
    """Speed of the videos."""
    scale: int
    versions: Mapping[str, str]
    result: RunResult = field(default_factory=RunResult)

    def __post_init__(self) -> None:
        self._pending = {request.id: request for request in self.requests}
        self._writers: dict[str, VideoWriter | LatentWriter] = {}
        self._num_chunks = {request.id: self._chunks_of(request) for request in self.requests}
        self._chunks_done = 0
        self._frames_done = 0
        self._started = time.monotonic()

    def run(self) -> RunResult:
        """Runs until every video ended or the user interrupts; unfinished files are removed either way.

        Raises `CapacityError` when the pool is too small for every one of the videos.
        """
        try:
            with Interrupt(self.view.note) as interrupt:
                self._submit_all()
                self._show_status()
                while self.engine.has_work and not interrupt.requested:
                    for output in self.engine.step():
                        self._take(output)
                    self._show_status()
                self.result.num_left = len(self._pending)
        finally:
            for writer in self._writers.values():
                writer.discard()
            self.result.seconds = time.monotonic() - self._started
        return self.result

    def _submit_all(self) -> None:
        refusals: dict[str, PagedvidError] = {}
        for request in self.requests:
            try:
                self.engine.submit(request)
            except PagedvidError as error:
                refusals[request.id] = error
        if len(refusals) == len(self.requests) and all(isinstance(it, CapacityError) for it in refusals.values()):
            raise next(iter(refusals.values()))
        for request_id, refusal in refusals.items():
            self._end_failed(request_id, refusal)

    def _take(self, output: ChunkOutput | RequestFailure) -> None:
        if output.request_id not in self._pending:
            return  # of a video that could not be written and was cancelled within this very step
        if isinstance(output, RequestFailure):
            self._end_failed(output.request_id, output.error)
        else:
            self._write_chunk(output)

    def _write_chunk(self, output: ChunkOutput) -> None:
        request = self._pending[output.request_id]
        try:
            writer = self._writers.get(request.id)
            if writer is None:
                writer = self.folder.open_video(request, self.frames_per_second, self.scale)
                self._writers[request.id] = writer
            writer.add(output.frames)
            self._chunks_done += 1
            self._frames_done += len(output.frames)
            if output.is_last:
                self._end_done(request, writer, output)
        except WRITE_ERRORS as error:
            if not output.is_last:
                self.engine.cancel(request.id)
            self._end_failed(request.id, error)

    def _end_done(self, request: VideoRequest, writer: VideoWriter | LatentWriter, last: ChunkOutput) -> None:
        stored_bytes, bf16_bytes = last.stored_bytes, last.bf16_bytes
        self.folder.record_done(request, writer, self._details(stored_bytes, bf16_bytes))
        del self._pending[request.id], self._writers[request.id]
        self.result.num_done += 1
        self.result.num_frames += writer.num_frames
        self.result.stored_bytes += stored_bytes
        self.result.bf16_bytes += bf16_bytes
        self.view.note(f"done    {request.id}  {writer.num_frames} frames")

    def _details(self, stored_bytes: int, bf16_bytes: int) -> dict[str, Any]:
        return {
            "frames_per_second": self.frames_per_second,
            "seconds_after_start": round(time.monotonic() - self._started, 3),
            "cache_peak_bytes": stored_bytes,
            "cache_bf16_bytes": bf16_bytes,
            "versions": dict(self.versions),
        }

    def _end_failed(self, request_id: str, error: Exception) -> None:
        request = self._pending.pop(request_id)
        if writer := self._writers.pop(request_id, None):
            writer.discard()
        self.result.num_failed += 1
        self.view.note(f"failed  {request_id}  {_reason(error)}")
        try:
            self.folder.record_failed(request, error)
        except OSError as manifest_error:
            self.view.note(f"        the manifest could not be written: {_reason(manifest_error)}")

    def _show_status(self) -> None:
        self.result.pool = stats = self.engine.cache.stats()
        if stats.num_chunks and (self.result.fullest is None or stats.stored_bytes > self.result.fullest.stored_bytes):
            self.result.fullest = stats
        elapsed = time.monotonic() - self._started
        self.view.update(
            Status(
                videos_ended=self.result.num_done + self.result.num_failed,
                num_videos=len(self.requests),
                chunks_done=self._chunks_done,
                num_chunks=sum(self._num_chunks.values()),
                pages_used=stats.pages_used,
                num_pages=stats.num_pages,
                frames_per_second=self._frames_done / elapsed if elapsed > 0 else 0.0,
            )
        )

    def _chunks_of(self, request: VideoRequest) -> int:
        frames_per_chunk = self.engine.model.geometry.frames_per_chunk
        return -(-request.num_frames // frames_per_chunk)


def _reason(error: Exception) -> str:
    """The message in one line; of a file error only what happened, since the video is named beside it."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split())

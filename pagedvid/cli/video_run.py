"""The loop of `pagedvid generate`: engine outputs become video files; a video that fails does not stop the others.

Every error of a video, expected or not, is caught where the loop handles that video. Only an error of the engine itself
stops the run early; the videos that are finished by then count.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pagedvid.cli.messages import reason
from pagedvid.cli.progress import ProgressView, Status
from pagedvid.cli.run_result import RunResult
from pagedvid.cli.terminal import Interrupt
from pagedvid.cli.threads import ThreadChoice
from pagedvid.engine.requests import ChunkOutput, EngineOutput, VideoRequest
from pagedvid.errors import CapacityError, ConfigError
from pagedvid.output.folder import OutputFolder
from pagedvid.output.latents import LatentWriter
from pagedvid.output.mp4 import VideoWriter

if TYPE_CHECKING:
    from pagedvid.engine.engine import Engine


@dataclass
class VideoRun:
    """Makes the videos of `requests` with one engine, into one folder."""

    engine: Engine
    folder: OutputFolder
    requests: Sequence[VideoRequest]
    view: ProgressView
    frames_per_second: float
    """Playing speed of the videos."""
    scale: int
    versions: Mapping[str, str]
    threads: ThreadChoice | None = None
    """None: the number of threads stays as it is."""
    result: RunResult = field(default_factory=RunResult)

    def __post_init__(self) -> None:
        self._pending = {request.id: request for request in self.requests}
        self._writers: dict[str, VideoWriter | LatentWriter] = {}
        self._num_chunks = sum(self._chunks_of(request) for request in self.requests)
        self._chunks_done = 0
        self._frames_done = 0
        self._started = time.monotonic()

    def run(self) -> RunResult:
        """Runs until every video has ended, the user interrupts or the engine fails; unfinished files are removed.

        Raises `CapacityError` when the pool is too small for any of the videos.
        """
        try:
            with Interrupt(self.view.note) as interrupt:
                self._submit_all()
                self._show_status()
                while self.engine.has_work and not interrupt.requested and self._step():
                    self._show_status()
                self.result.num_left = len(self._pending)
                self.result.was_interrupted = interrupt.requested
        finally:
            for writer in self._writers.values():
                writer.discard()
            self.result.seconds = time.monotonic() - self._started
        return self.result

    def _submit_all(self) -> None:
        refusals: dict[str, Exception] = {}
        for request in self.requests:
            try:
                self.engine.submit(request)
            except Exception as error:
                refusals[request.id] = error
        if len(refusals) == len(self.requests) and all(isinstance(it, CapacityError) for it in refusals.values()):
            raise next(iter(refusals.values()))
        for request_id, refusal in refusals.items():
            self._end_failed(request_id, refusal)

    def _step(self) -> bool:
        """One step of the engine; False when it cannot continue. Failures of single videos are among its outputs."""
        try:
            outputs = self.threads.run(self.engine.step) if self.threads else self.engine.step()
        except Exception as error:
            self.view.note(f"stopped {reason(error)}")
            return False
        for output in outputs:
            self._take(output)
        return True

    def _take(self, output: EngineOutput) -> None:
        if output.request_id not in self._pending:
            return  # its video could not be written and was cancelled earlier in this step
        if not isinstance(output, ChunkOutput):
            self._end_failed(output.request_id, output.error)
            return
        try:
            self._write_chunk(output)
        except Exception as error:
            if not output.is_last:
                with suppress(ConfigError):  # it may end with a later output of this step
                    self.engine.cancel(output.request_id)
            self._end_failed(output.request_id, error)

    def _write_chunk(self, output: ChunkOutput) -> None:
        request = self._pending[output.request_id]
        writer = self._writers.get(request.id)
        if writer is None:
            writer = self.folder.open_video(request, self.frames_per_second, self.scale)
            self._writers[request.id] = writer
        writer.add(output.frames)
        self._chunks_done += 1
        self._frames_done += len(output.frames)
        if output.is_last:
            self._end_done(request, writer, output)

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
            **({"threads": self.threads.num_threads} if self.threads else {}),
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
        self.view.note(f"failed  {request_id}  {reason(error)}")
        try:
            self.folder.record_failed(request, error)
        except Exception as manifest_error:
            self.view.note(f"        the manifest could not be written: {reason(manifest_error)}")

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
                num_chunks=self._num_chunks,
                pages_used=stats.pages_used,
                num_pages=stats.num_pages,
                frames_per_second=self._frames_done / elapsed if elapsed > 0 else 0.0,
            )
        )

    def _chunks_of(self, request: VideoRequest) -> int:
        frames_per_chunk = self.engine.model.geometry.frames_per_chunk
        return -(-request.num_frames // frames_per_chunk)

"""From chunks of frames to the files of a run: each video's file, its json and its line in the manifest."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from pagedvid.cli.engine_watch import EngineWatch
from pagedvid.cli.messages import reason
from pagedvid.cli.progress import ProgressView
from pagedvid.cli.run_result import RunResult
from pagedvid.engine.requests import VideoRequest
from pagedvid.output.folder import OutputFolder
from pagedvid.output.latents import LatentWriter
from pagedvid.output.mp4 import VideoWriter
from pagedvid.service.events import ChunkEvent


class VideoFiles:
    """Writes the videos of a run into one folder, and counts what became of them."""

    def __init__(
        self,
        folder: OutputFolder,
        requests: Sequence[VideoRequest],
        view: ProgressView,
        watch: EngineWatch,
        frames_per_second: float | None,
        scale: int,
        versions: Mapping[str, str],
    ) -> None:
        """`frames_per_second`: None: as the model's videos."""
        self.pending = {request.id: request for request in requests}
        """The videos that have not ended."""
        self.result = RunResult()
        self.chunks_done = self.frames_done = 0
        self.started = time.monotonic()
        self._folder, self._view, self._watch = folder, view, watch
        self._frames_per_second, self._scale, self._versions = frames_per_second, scale, dict(versions)
        self._writers: dict[str, VideoWriter | LatentWriter] = {}

    def write(self, chunk: ChunkEvent) -> None:
        """Adds a chunk to its video, and completes the video with its last one. Raises what writing raises."""
        request = self.pending[chunk.id]
        writer = self._writers.get(chunk.id)
        if writer is None:
            writer = self._writers[chunk.id] = self._folder.open_video(request, self._speed, self._scale)
        writer.add(chunk.frames)
        self.chunks_done += 1
        self.frames_done += len(chunk.frames)
        if chunk.is_last:
            self._folder.record_done(request, writer, self._details(chunk))
            del self.pending[chunk.id], self._writers[chunk.id]
            self.result.num_done += 1
            self.result.num_frames += writer.num_frames
            self.result.stored_bytes += chunk.stored_bytes
            self.result.bf16_bytes += chunk.bf16_bytes
            self._view.note(f"done    {chunk.id}  {writer.num_frames} frames")

    def fail(self, id: str, kind: str, message: str, shown: str) -> None:
        """Ends a video without a file. The manifest gets kind and message of the error, the view what is `shown`."""
        request = self.pending.pop(id)
        if writer := self._writers.pop(id, None):
            writer.discard()
        self.result.num_failed += 1
        self._view.note(f"failed  {id}  {shown}")
        try:
            self._folder.record_failed(request, kind, message)
        except Exception as error:
            self._view.note(f"        the manifest could not be written: {reason(error)}")

    def discard_unfinished(self) -> None:
        """Removes what was written of videos that have not ended."""
        for writer in self._writers.values():
            writer.discard()

    @property
    def seconds(self) -> float:
        """Since the first engine was ready."""
        return time.monotonic() - self.started

    @property
    def _speed(self) -> float:
        return self._frames_per_second or self._watch.frames_per_second

    def _details(self, last: ChunkEvent) -> dict[str, Any]:
        num_threads = self._watch.num_threads
        return {
            **({} if num_threads is None else {"threads": num_threads}),
            "frames_per_second": self._speed,
            "seconds_after_start": round(self.seconds, 3),
            "cache_peak_bytes": last.stored_bytes,
            "cache_bf16_bytes": last.bf16_bytes,
            "versions": self._versions,
        }

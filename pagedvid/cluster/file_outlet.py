"""Writes a worker's videos to files in its own process, so that frames never travel: their files do.

A finished file is uploaded under a temporary name of its own. Whoever holds the worker is told, and gives it its final
name; that happens in one place, so it happens once per video, also when two workers made the same one.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from threading import Thread
from typing import Any

from pagedvid.cluster.remote_files import RemoteFiles
from pagedvid.files.atomic import temporary_path
from pagedvid.output.latents import LatentWriter
from pagedvid.output.mp4 import VideoWriter
from pagedvid.service.event_queue import EventQueue
from pagedvid.service.events import ChunkEvent, Event, FailureEvent

logger = logging.getLogger(__name__)

MAX_UNWRITTEN = 16
"""Chunks that wait to be written; the worker waits while there are more."""
LOOK_SECONDS = 0.2


@dataclass(frozen=True)
class ProgressEvent:
    """A chunk was written."""

    id: str
    num_frames: int


@dataclass(frozen=True)
class FileEvent:
    """A video is complete, in a file that has no final name yet."""

    id: str
    name: str
    """Temporary name of the file in the folder of the results."""
    num_frames: int
    num_bytes: int
    stored_bytes: int
    """The most that the video's stream has held."""
    bf16_bytes: int
    """The same tokens as dense BF16."""


@dataclass(frozen=True)
class VideoFormat:
    """What the files are like."""

    frames_per_second: float
    scale: int
    """Enlargement of the pixels of an mp4."""
    holds_latents: bool
    """Whether frames are latents, written as safetensors."""

    def file_name(self, id: str) -> str:
        """Of a video."""
        return f"{id}{'.safetensors' if self.holds_latents else '.mp4'}"

    def writer(self, path: Path) -> VideoWriter | LatentWriter:
        """For one video. Raises one of `mp4.write_errors()`."""
        if self.holds_latents:
            return LatentWriter(path, self.frames_per_second)
        return VideoWriter(path, self.frames_per_second, self.scale)


class _GrowingFile:
    """A video that is not complete, in a temporary folder of its own on the worker's machine."""

    def __init__(self, id: str, format: VideoFormat) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="pagedvid-")
        self.writer = format.writer(Path(self._folder.name) / format.file_name(id))

    def remove(self) -> None:
        """Removes the file and its folder."""
        self.writer.discard()
        self._folder.cleanup()


class FileOutlet:
    """An outlet of a `WorkerActor`."""

    def __init__(self, send: Callable[[Any], None], url: str, format: VideoFormat) -> None:
        """`url`: the folder of the results. Raises ConfigError, see `RemoteFiles`."""
        self._send, self._format, self._files = send, format, RemoteFiles(url)
        self._unwritten = EventQueue[ChunkEvent | FailureEvent](MAX_UNWRITTEN)
        self._growing: dict[str, _GrowingFile] = {}
        self._failed: set[str] = set()
        """Of these more chunks may come."""
        self._is_closed = False
        self._thread = Thread(target=self._write_all, name="pagedvid-files", daemon=True)
        self._thread.start()

    def hear(self, event: Event) -> None:
        """On the worker's thread."""
        if isinstance(event, ChunkEvent | FailureEvent):
            self._unwritten.put(event)
        else:
            self._send(event)

    def close(self) -> None:
        """Writes what waits; unfinished videos are removed."""
        self._is_closed = True
        self._thread.join()
        for file in self._growing.values():
            file.remove()

    # ------------------------------------------------------------------ on the thread that writes

    def _write_all(self) -> None:
        while True:
            event = self._unwritten.take(LOOK_SECONDS)
            if isinstance(event, FailureEvent):
                self._end(event)
            elif event is not None and event.id not in self._failed:
                try:
                    self._write(event)
                except Exception as error:
                    logger.warning("video %s could not be written", event.id, exc_info=True)
                    self._end(FailureEvent(event.id, type(error).__name__, str(error)))
            elif event is None and self._is_closed:
                return

    def _write(self, chunk: ChunkEvent) -> None:
        file = self._growing.get(chunk.id)
        if file is None:
            file = self._growing[chunk.id] = _GrowingFile(chunk.id, self._format)
        file.writer.add(chunk.frames)
        self._send(ProgressEvent(chunk.id, len(chunk.frames)))
        if chunk.is_last:
            file.writer.finish()
            self._upload(chunk, file.writer)
            self._growing.pop(chunk.id).remove()

    def _upload(self, chunk: ChunkEvent, writer: VideoWriter | LatentWriter) -> None:
        source = temporary_path(writer.path)
        name = temporary_path(Path(f"{writer.path.name}.{token_hex(8)}")).name
        self._files.upload(source, name)
        self._send(
            FileEvent(chunk.id, name, writer.num_frames, source.stat().st_size, chunk.stored_bytes, chunk.bf16_bytes)
        )

    def _end(self, failure: FailureEvent) -> None:
        self._failed.add(failure.id)
        if file := self._growing.pop(failure.id, None):
            file.remove()
        self._send(failure)

"""The output folder of a run: which videos are done, where each one is written, and what is written next to it.

<id>.mp4          the video, or                    manifest.jsonl   one line per video that has ended
<id>.safetensors  its latents                      sheet.png        frames of all videos
<id>.json         its settings and cache sizes
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any

from pagedvid.engine.requests import VideoRequest
from pagedvid.errors import ConfigError
from pagedvid.files.atomic import publish, remove_stale, replacing, temporary_path
from pagedvid.output.latents import LatentWriter
from pagedvid.output.manifest import Manifest
from pagedvid.output.mp4 import VideoWriter
from pagedvid.output.records import MANIFEST_NAME, SHEET_NAME, Records


class OutputFolder:
    """An open, locked output folder. Leaving its `with` block releases the lock."""

    def __init__(
        self,
        path: Path,
        settings: Mapping[str, Any],
        files: Mapping[str, str | None] = MappingProxyType({}),
        *,
        resume: bool = False,
        overwrite: bool = False,
        holds_latents: bool = False,
    ) -> None:
        """Makes or opens the folder. `settings`: those that decide the frames of its videos, by "section.key". `files`:
        fingerprints of the model's files.

        Raises `ConfigError` when the folder is not empty and neither `resume` nor `overwrite` is set, when another run
        is writing to it, and when it cannot be written to.
        """
        self.path = path
        self.holds_latents = holds_latents
        try:
            path.mkdir(parents=True, exist_ok=True)
            if not (resume or overwrite):
                _refuse_used(path)
            self._manifest = Manifest(path / MANIFEST_NAME, start_anew=overwrite)
            try:
                remove_stale(path)
            except OSError:
                self._manifest.close()
                raise
        except OSError as error:
            raise ConfigError(f"cannot write to {path}: {error.strerror}; use another --out") from None
        self._records = Records(str(path), self._manifest.entries, dict(settings), dict(files), holds_latents)

    @property
    def url(self) -> str:
        """Where others write to the folder."""
        return str(self.path.resolve())

    def video_path(self, id: str) -> Path:
        """The path of a request's video."""
        return self.path / self._records.file_name(id)

    @property
    def sheet_path(self) -> Path:
        """The path of the contact sheet."""
        return self.path / SHEET_NAME

    def is_done(self, request: VideoRequest) -> bool:
        """See `Records.is_done`."""
        try:
            num_bytes = self.video_path(request.id).stat().st_size
        except OSError:
            num_bytes = None
        return self._records.is_done(request, num_bytes)

    def refuse_another_job(self) -> None:
        """See `Records.refuse_another_job`."""
        self._records.refuse_another_job()

    def open_video(self, request: VideoRequest, frames_per_second: float, scale: int) -> VideoWriter | LatentWriter:
        """A writer for the video of a request.

        Raises one of `write_errors()`, also for a manifest that cannot be written: better now than after the video.
        """
        self._manifest.prepare()
        if self.holds_latents:
            return LatentWriter(self.video_path(request.id), frames_per_second)
        return VideoWriter(self.video_path(request.id), frames_per_second, scale)

    def record_done(
        self, request: VideoRequest, writer: VideoWriter | LatentWriter, details: Mapping[str, Any]
    ) -> None:
        """Completes a video: first its file, then its json, then the manifest line. Raises one of `write_errors()`.

        The video counts as done only with its line. When the line or the json cannot be written, the file stays.
        """
        writer.finish()
        self._complete(request, temporary_path(writer.path), writer.publish, details)

    def accept(self, request: VideoRequest, name: str, details: Mapping[str, Any]) -> None:
        """The same for a complete file that somebody else wrote into the folder under a temporary name."""
        temporary = self.path / name
        self._complete(request, temporary, lambda: publish(self.video_path(request.id), temporary), details)

    def _complete(
        self, request: VideoRequest, temporary: Path, publish: Callable[[], None], details: Mapping[str, Any]
    ) -> None:
        entry = self._records.done(request, temporary.stat().st_size, details)
        sidecar = self._records.sidecar(entry)
        publish()
        try:
            with replacing(self.path / f"{request.id}.json") as path:
                path.write_bytes(sidecar)
            self._manifest.append(entry)
        except OSError as error:
            what = f"{entry.details['file']} is complete, but its json or manifest line could not be written"
            raise OSError(error.errno, f"{what}: {error.strerror}; --resume makes it again") from error

    def record_failed(self, request: VideoRequest, kind: str, message: str) -> None:
        """Writes to the manifest that a video ended with an error of that kind. Raises OSError."""
        self._manifest.append(self._records.failed(request, kind, message))

    def discard_unfinished(self) -> None:
        """Removes files with temporary names. Never raises; the next run tries again."""
        with suppress(OSError):
            remove_stale(self.path)

    def __enter__(self) -> OutputFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._manifest.close()


def _refuse_used(path: Path) -> None:
    """Raises ConfigError unless the folder is empty. An empty manifest does not count: a killed run may leave one."""
    num_used = sum(entry.name != MANIFEST_NAME or entry.stat().st_size > 0 for entry in path.iterdir())
    if num_used:
        raise ConfigError(
            f"{path} is not empty ({num_used} files): use --resume to make only what is missing, --overwrite to make "
            "all videos again, or another --out"
        )

"""The output folder of a run: which videos are done, where each one is written, and what is written next to it.

<id>.mp4          the video, or                    manifest.jsonl   one line per video that has ended
<id>.safetensors  its latents                      sheet.png        frames of all videos
<id>.json         its settings and cache sizes
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from pagedvid.engine.requests import VideoRequest
from pagedvid.errors import ConfigError
from pagedvid.files.atomic import remove_stale, replacing, temporary_path
from pagedvid.output.latents import LatentWriter
from pagedvid.output.manifest import Manifest, ManifestEntry, json_text
from pagedvid.output.mp4 import VideoWriter

logger = logging.getLogger(__name__)

MANIFEST_NAME, SHEET_NAME = "manifest.jsonl", "sheet.png"


class OutputFolder:
    """An open, locked output folder. Leaving its `with` block releases the lock."""

    def __init__(
        self,
        path: Path,
        settings: Mapping[str, Any],
        *,
        resume: bool = False,
        overwrite: bool = False,
        holds_latents: bool = False,
    ) -> None:
        """Makes or opens the folder. `settings`: those that decide the frames of its videos, by "section.key".

        Raises `ConfigError` when the folder is not empty and neither `resume` nor `overwrite` is set, when another run
        is writing to it, and when it cannot be written to.
        """
        self.path = path
        self.settings = dict(settings)
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

    def video_path(self, id: str) -> Path:
        """The path of a request's video."""
        return self.path / f"{id}{'.safetensors' if self.holds_latents else '.mp4'}"

    @property
    def sheet_path(self) -> Path:
        """The path of the contact sheet."""
        return self.path / SHEET_NAME

    def is_done(self, request: VideoRequest) -> bool:
        """Whether an earlier run has finished the same video, and its file is still complete.

        Raises `ConfigError` when the folder has a video of that id with another prompt or other settings.
        """
        entry = self._manifest.entries.get(request.id)
        if entry is None or entry.status != "done" or not self._is_whole(entry):
            return False
        if differences := entry.differences(request, self.settings):
            raise ConfigError(
                f"{self.video_path(request.id)} was made differently ({'; '.join(differences)}); resume with the same "
                "prompts and settings, use --overwrite to make all videos again, or use another --out"
            )
        return True

    def _is_whole(self, entry: ManifestEntry) -> bool:
        """Whether the file of a finished video still has its length. That is enough, because a file gets its name only
        when it is complete. Entries of earlier versions do not say the length: then the file must not be empty."""
        path, expected = self.video_path(entry.id), entry.details.get("bytes")
        try:
            size = path.stat().st_size
        except OSError:
            return False
        if size > 0 if expected is None else size == expected:
            return True
        given = f"{size}" if expected is None else f"{size} of {expected}"
        logger.warning("%s is incomplete, it has %s bytes: it is made again", path.name, given)
        return False

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
        summary = {"file": writer.path.name, "bytes": temporary_path(writer.path).stat().st_size, **details}
        sidecar = json_text({**_request_fields(request), **summary, "settings": self.settings}, indent=2)
        writer.publish()
        try:
            with replacing(self.path / f"{request.id}.json") as path:
                path.write_bytes(sidecar)
            self._append(request, "done", details=summary)
        except OSError as error:
            what = f"{writer.path.name} is complete, but its json or manifest line could not be written"
            raise OSError(error.errno, f"{what}: {error.strerror}; --resume makes it again") from error

    def record_failed(self, request: VideoRequest, kind: str, message: str) -> None:
        """Writes to the manifest that a video ended with an error of that kind. Raises OSError."""
        self._append(request, "failed", error=f"{kind}: {message}")

    def _append(self, request: VideoRequest, status: str, **fields: Any) -> None:
        entry = ManifestEntry(**_request_fields(request), status=status, settings=self.settings, **fields)
        self._manifest.append(entry)

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


def _request_fields(request: VideoRequest) -> dict[str, Any]:
    return {
        "id": request.id,
        "prompt": request.prompt,
        "seed": request.seed,
        "num_frames": request.num_frames,
        "inputs": dict(request.inputs),
    }

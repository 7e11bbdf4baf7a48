"""The output folder of one run: which videos are done, where each goes, and what is written beside it.

<id>.mp4        the video, or its latents:     manifest.jsonl   one line per video that ended
<id>.safetensors
<id>.json       its settings and bytes         sheet.png        frames of all videos
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from pagedvid.engine.requests import VideoRequest
from pagedvid.errors import ConfigError
from pagedvid.output.atomic import remove_stale, replacing
from pagedvid.output.latents import LatentWriter
from pagedvid.output.manifest import Manifest, ManifestEntry
from pagedvid.output.video import VideoWriter

MANIFEST_NAME, SHEET_NAME = "manifest.jsonl", "sheet.png"


class OutputFolder:
    """An open, locked output folder. Closing it (or leaving its `with` block) gives the lock back."""

    def __init__(
        self,
        path: Path,
        settings: Mapping[str, Any],
        *,
        resume: bool = False,
        overwrite: bool = False,
        holds_latents: bool = False,
    ) -> None:
        """Makes or opens the folder. `settings` decide the frames of all its videos.

        Raises `ConfigError` when the folder holds something and neither `resume` nor `overwrite` says what to do with
        it, when another run is writing to it, and when it cannot be written to.
        """
        self.path = path
        self.settings = dict(settings)
        self.holds_latents = holds_latents
        try:
            path.mkdir(parents=True, exist_ok=True)
            if not (resume or overwrite):
                _refuse_used(path)
            self._manifest = Manifest(path / MANIFEST_NAME, start_anew=overwrite)
            self.num_stale = remove_stale(path)
        except OSError as error:
            raise ConfigError(f"cannot write to {path}: {error.strerror}; use another --out") from None

    def video_path(self, id: str) -> Path:
        """Where the video of a request goes."""
        return self.path / f"{id}{'.safetensors' if self.holds_latents else '.mp4'}"

    @property
    def sheet_path(self) -> Path:
        """Where the contact sheet goes."""
        return self.path / SHEET_NAME

    def is_done(self, request: VideoRequest) -> bool:
        """Whether an earlier run finished this very video.

        Raises `ConfigError` when the folder holds a video of that id that was made otherwise.
        """
        entry = self._manifest.entries.get(request.id)
        if entry is None or entry.status != "done" or not self.video_path(request.id).exists():
            return False
        if differences := entry.differences(request, self.settings):
            raise ConfigError(
                f"{self.video_path(request.id)} was made otherwise ({'; '.join(differences)}); resume with the same "
                "prompts and settings, use --overwrite to make all videos again, or use another --out"
            )
        return True

    def open_video(self, request: VideoRequest, frames_per_second: float, scale: int) -> VideoWriter | LatentWriter:
        """A writer for the video of a request. Raises one of `WRITE_ERRORS`."""
        if self.holds_latents:
            return LatentWriter(self.video_path(request.id), frames_per_second)
        return VideoWriter(self.video_path(request.id), frames_per_second, scale)

    def record_done(
        self, request: VideoRequest, writer: VideoWriter | LatentWriter, details: Mapping[str, Any]
    ) -> None:
        """Ends a video: json, then the file under its name, then the manifest line. Raises one of `WRITE_ERRORS`."""
        writer.finish()
        summary = {"file": writer.path.name, **details}
        sidecar = {**_request_fields(request), **summary, "settings": self.settings}
        with replacing(self.path / f"{request.id}.json") as path:
            path.write_text(json.dumps(sidecar, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        writer.publish()
        self._append(request, "done", details=summary)

    def record_failed(self, request: VideoRequest, error: Exception) -> None:
        """Notes in the manifest that a video ended with an error. Raises OSError."""
        self._append(request, "failed", error=f"{type(error).__name__}: {error}")

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
    """An empty manifest does not count: it is what a run leaves that was killed before its first video."""
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

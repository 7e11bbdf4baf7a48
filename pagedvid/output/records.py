"""What the manifest of a folder says of its videos, wherever the folder is."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pagedvid.engine.requests import VideoRequest
from pagedvid.errors import ConfigError
from pagedvid.output.manifest import ManifestEntry, json_text, later_prompts_of

logger = logging.getLogger(__name__)

MANIFEST_NAME, SHEET_NAME = "manifest.jsonl", "sheet.png"


@dataclass(frozen=True)
class Records:
    """Reads the entries of a manifest for one job, and makes new ones."""

    place: str
    """The folder, as its user wrote it."""
    entries: Mapping[str, ManifestEntry]
    """By id, always as the manifest is now."""
    settings: Mapping[str, Any]
    """Those that decide the frames of the videos, by "section.key"."""
    files: Mapping[str, str | None] = field(default_factory=dict)
    """Fingerprints of the model's files; with `settings` they are the fingerprint of the job."""
    holds_latents: bool = False

    def file_name(self, id: str) -> str:
        """Of a video."""
        return f"{id}{'.safetensors' if self.holds_latents else '.mp4'}"

    def is_done(self, request: VideoRequest, num_bytes: int | None) -> bool:
        """Whether an earlier run has finished the same video, and its file is still complete.

        `num_bytes`: of its file; None: there is no file. Raises `ConfigError` when the folder has a video of that id
        with another prompt, other settings or another model.
        """
        entry = self.entries.get(request.id)
        if entry is None or entry.status != "done" or not self._is_whole(entry, num_bytes):
            return False
        if differences := entry.differences(request, self.settings, self.files):
            raise ConfigError(
                f"{self.place}/{self.file_name(request.id)} was made differently ({'; '.join(differences)}); resume "
                "with the same prompts and settings, use --overwrite to make all videos again, or use another --out"
            )
        return True

    def refuse_another_job(self) -> None:
        """Raises ConfigError if any entry is of a job with other settings or another model, and names these."""
        for entry in self.entries.values():
            if differences := entry.job_differences(self.settings, self.files):
                raise ConfigError(
                    f"{self.place}/{MANIFEST_NAME} is of another job ({'; '.join(differences)}); resume with the same "
                    "settings and model, use --overwrite to make all videos again, or use another --out"
                )

    def done(self, request: VideoRequest, num_bytes: int, details: Mapping[str, Any]) -> ManifestEntry:
        """The entry of a finished video, whose file has so many bytes."""
        summary = {"file": self.file_name(request.id), "bytes": num_bytes, **details}
        return self._entry(request, "done", details=summary)

    def failed(self, request: VideoRequest, kind: str, message: str) -> ManifestEntry:
        """The entry of a video that ended with an error of that kind."""
        return self._entry(request, "failed", error=f"{kind}: {message}")

    def sidecar(self, entry: ManifestEntry) -> bytes:
        """The content of a finished video's own json."""
        names = ("id", "prompt", "later_prompts", "seed", "num_frames", "inputs")
        request = {name: getattr(entry, name) for name in names}
        return json_text({**request, **entry.details, "settings": self.settings}, indent=2)

    def _entry(self, request: VideoRequest, status: str, **fields: Any) -> ManifestEntry:
        return ManifestEntry(
            id=request.id,
            status=status,
            prompt=request.prompt,
            seed=request.seed,
            num_frames=request.num_frames,
            settings=self.settings,
            files=self.files,
            inputs=dict(request.inputs),
            later_prompts=later_prompts_of(request),
            **fields,
        )

    def _is_whole(self, entry: ManifestEntry, num_bytes: int | None) -> bool:
        """Whether the file of a finished video still has its length. That is enough, because a file gets its name only
        when it is complete. Entries of earlier versions do not say the length: then the file must not be empty."""
        expected = entry.details.get("bytes")
        if num_bytes is None:
            return False
        if num_bytes > 0 if expected is None else num_bytes == expected:
            return True
        given = f"{num_bytes}" if expected is None else f"{num_bytes} of {expected}"
        logger.warning("%s is incomplete, it has %s bytes: it is made again", self.file_name(entry.id), given)
        return False

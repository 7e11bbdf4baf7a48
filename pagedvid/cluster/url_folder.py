"""The results of a run at a URL, such as s3://bucket/videos: what `OutputFolder` is for a folder of this machine.

An object store cannot add a line to a file, so the manifest is written anew, though not for every video. A driver that
is killed may lose the lines of the last moments; `--resume` makes these videos again, with the same bytes. Nor can an
object store be locked: nobody notices two runs that write to one URL.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from types import TracebackType
from typing import Any

from pagedvid.cluster.remote_files import RemoteFiles
from pagedvid.engine.requests import VideoRequest
from pagedvid.errors import ConfigError
from pagedvid.files.atomic import is_temporary
from pagedvid.output.manifest import ManifestEntry, json_text, read_entries
from pagedvid.output.records import MANIFEST_NAME, Records

WRITE_SECONDS = 5.0
"""At least so long between two writes of the manifest."""


class UrlFolder:
    """An open folder at a URL. Leaving its `with` block writes the manifest."""

    def __init__(
        self,
        url: str,
        settings: Mapping[str, Any],
        files: Mapping[str, str | None],
        *,
        resume: bool = False,
        overwrite: bool = False,
        holds_latents: bool = False,
    ) -> None:
        """See `OutputFolder`. Raises ConfigError."""
        self.url, self.holds_latents = url, holds_latents
        self._files = RemoteFiles(url)
        try:
            self._files.make()
            names = self._files.names()
            if names and not (resume or overwrite):
                raise ConfigError(
                    f"{url} is not empty ({len(names)} files): use --resume to make only what is missing, --overwrite "
                    "to make all videos again, or another --out"
                )
            is_read = MANIFEST_NAME in names and not overwrite
            lines = self._files.read(MANIFEST_NAME) if is_read else b""
            self._entries = read_entries(lines, f"{url}/{MANIFEST_NAME}")
            self.discard_unfinished()
        except ConfigError:
            raise
        except Exception as error:  # every file system has errors of its own
            raise ConfigError(f"cannot write to {url}: {type(error).__name__}: {error}; use another --out") from error
        self._records = Records(url, self._entries, dict(settings), dict(files), holds_latents)
        self._written_at, self._is_written = time.monotonic(), True

    def is_done(self, request: VideoRequest) -> bool:
        """See `Records.is_done`."""
        return self._records.is_done(request, self._files.num_bytes(self._records.file_name(request.id)))

    def refuse_another_job(self) -> None:
        """See `Records.refuse_another_job`."""
        self._records.refuse_another_job()

    def accept(self, request: VideoRequest, name: str, details: Mapping[str, Any]) -> None:
        """Completes a video: its file gets its name, then its json is written, then the manifest.

        `name`: under which a worker has uploaded it. Raises what the file system raises.
        """
        num_bytes = self._files.num_bytes(name)
        if num_bytes is None:
            raise FileNotFoundError(f"the worker's file {name} is not in {self.url}")
        entry = self._records.done(request, num_bytes, details)
        self._files.rename(name, self._records.file_name(request.id))
        self._files.write(f"{request.id}.json", self._records.sidecar(entry))
        self._add(entry)

    def record_failed(self, request: VideoRequest, kind: str, message: str) -> None:
        """Writes that a video ended with an error of that kind. Raises what the file system raises."""
        self._add(self._records.failed(request, kind, message))

    def discard_unfinished(self) -> None:
        """Removes files with temporary names. Never raises; the next run tries again."""
        with suppress(Exception):
            for name in self._files.names():
                if is_temporary(name):
                    self._files.remove(name)

    def _add(self, entry: ManifestEntry) -> None:
        self._entries[entry.id] = entry
        self._is_written = False
        if time.monotonic() - self._written_at >= WRITE_SECONDS:
            self._write()

    def _write(self) -> None:
        lines = b"".join(json_text(asdict(entry)) for entry in self._entries.values())
        self._files.write(MANIFEST_NAME, lines)
        self._written_at, self._is_written = time.monotonic(), True

    def __enter__(self) -> UrlFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._is_written:
            self._write()

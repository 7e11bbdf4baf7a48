"""manifest.jsonl: one line per video that has ended, written so that it survives a kill at any moment.

Lines are appended and forced to disk; a later line about the same id replaces the earlier one. A kill or a full disk
can leave half a line at the end; it is cut off before the next line is written, and when the manifest is opened again.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pagedvid.engine.requests import VideoRequest
from pagedvid.errors import ConfigError
from pagedvid.files.plain_json import read_json_object
from pagedvid.shown import short, shown


@dataclass(frozen=True)
class ManifestEntry:
    """How a video ended, and everything that decides its frames."""

    id: str
    status: str
    """"done" or "failed"."""
    prompt: str
    seed: int
    num_frames: int
    settings: Mapping[str, Any]
    """The settings that decide the frames, by "section.key"."""
    inputs: Mapping[str, Any] = field(default_factory=dict)
    """Files that came with the prompt, by input name."""
    error: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    """File name, seconds, bytes: what a reader of the manifest may need without opening the video's own json."""
    files: Mapping[str, str | None] = field(default_factory=dict)
    """Fingerprints of the model's files, such as "weights"; empty in entries of earlier versions."""
    later_prompts: Sequence[Mapping[str, Any]] = field(default_factory=list)
    """The fields of each `LaterPrompt` of the request, in order."""

    def differences(
        self, request: VideoRequest, settings: Mapping[str, Any], files: Mapping[str, str | None] | None = None
    ) -> list[str]:
        """What differs between this entry and a request in a job, as "name: before -> now"; see `job_differences`."""
        before = {"prompt": self.prompt, "seed": self.seed, "frames": self.num_frames, **self.inputs}
        now = {"prompt": request.prompt, "seed": request.seed, "frames": request.num_frames, **request.inputs}
        before["later prompts"], now["later prompts"] = self.later_prompts, later_prompts_of(request)
        return [*_differences(before, now), *self.job_differences(settings, files or {})]

    def job_differences(self, settings: Mapping[str, Any], files: Mapping[str, str | None]) -> list[str]:
        """What differs between the job of this entry and one with these settings and fingerprints."""
        of_files = _differences(self.files, files) if self.files and files else []
        return [*_differences(self.settings, settings), *(f"fingerprint of {it}" for it in of_files)]


def later_prompts_of(request: VideoRequest) -> list[dict[str, Any]]:
    """The fields of its later prompts, as a manifest holds them."""
    return [asdict(later) for later in request.later_prompts]


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    keys = dict.fromkeys([*before, *now])
    return [f"{key}: {before.get(key)} -> {now.get(key)}" for key in keys if before.get(key) != now.get(key)]


def json_text(data: Mapping[str, Any], indent: int | None = None) -> bytes:
    """JSON in UTF-8, with a newline at its end. Non-ASCII letters are not escaped.

    Half of a surrogate pair, which UTF-8 cannot encode, becomes its JSON escape, so that any text can be written.
    """
    return (json.dumps(data, ensure_ascii=False, indent=indent) + "\n").encode("utf-8", "backslashreplace")


_TYPES: dict[str, type | tuple[type, ...]] = {
    "id": str,
    "status": str,
    "prompt": str,
    "seed": int,
    "num_frames": int,
    "settings": dict,
    "inputs": dict,
    "error": (str, type(None)),
    "details": dict,
    "files": dict,
    "later_prompts": list,
}
"""JSON types of an entry's fields."""
_NEEDED = ("id", "status", "prompt", "seed", "num_frames", "settings")


def _read_entry(line: bytes) -> ManifestEntry:
    """Reads an entry from its line. Raises ValueError."""
    values = read_json_object(line.decode("utf-8"))
    for name, value in values.items():
        if name not in _TYPES:
            raise ConfigError(f'unknown field "{short(name)}"')
        if not isinstance(value, _TYPES[name]) or isinstance(value, bool):
            raise ConfigError(f'"{name}" is {shown(value)}')
    for name in _NEEDED:
        if name not in values:
            raise ConfigError(f'"{name}" is missing')
    return ManifestEntry(**values)


def read_entries(lines: bytes, place: str) -> dict[str, ManifestEntry]:
    """The entries of a manifest by id, the newest of each. Raises `ConfigError`, which begins with the `place`."""
    entries = {}
    for number, line in enumerate(lines.splitlines(), start=1):
        try:
            entry = _read_entry(line)
        except ValueError as error:
            raise ConfigError(
                f"{place} line {number} is not a manifest entry ({error}); "
                "remove the line to make its video again, or use --overwrite"
            ) from None
        entries[entry.id] = entry
    return entries


def read_manifest(path: Path) -> dict[str, ManifestEntry]:
    """The entries of a manifest that another run may be writing; half a line at its end is left out.

    Raises `ConfigError` for a damaged line, and OSError.
    """
    return read_entries(_whole_lines(path.read_bytes()), str(path))


def _whole_lines(content: bytes) -> bytes:
    return content[: content.rfind(b"\n") + 1]


class Manifest:
    """The open manifest of one folder, locked against a second run."""

    def __init__(self, path: Path, *, start_anew: bool = False) -> None:
        """Opens or creates the file. `start_anew`: its lines are ignored, and removed when a new one is written.

        Raises `ConfigError` when another run has it open or a line is damaged, and OSError.
        """
        self.path = path
        self._open()
        try:
            self.entries = {} if start_anew else self._read()
            self._size = 0 if start_anew else self._file.seek(0, os.SEEK_END)
        except BaseException:
            self._file.close()
            raise

    def _open(self) -> None:
        """Opens and locks the file; once more if the run that had it open removed it, empty, between the two steps."""
        while True:
            self._file = self.path.open("a+b", buffering=0)
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if self._is_in_place():
                    return
            except BlockingIOError:
                self._file.close()
                raise ConfigError(
                    f"another pagedvid is writing to {self.path.parent}; wait for it or use another --out"
                ) from None
            except OSError:
                self._file.close()
                raise
            self._file.close()

    def _is_in_place(self) -> bool:
        """Whether the open file is still the one at `path`."""
        try:
            return os.path.samestat(os.fstat(self._file.fileno()), self.path.stat())
        except FileNotFoundError:
            return False

    def _read(self) -> dict[str, ManifestEntry]:
        """Entries by id, the newest of each; cuts off a torn last line. Raises `ConfigError`."""
        if not stat.S_ISREG(os.fstat(self._file.fileno()).st_mode):
            self._file.close()
            raise ConfigError(f"{self.path} is not a regular file; remove it, or use another --out")
        self._file.seek(0)
        content = self._file.read()
        whole = _whole_lines(content)
        if len(whole) < len(content):
            self._file.truncate(len(whole))
        try:
            return read_entries(whole, str(self.path))
        except ConfigError:
            self._file.close()
            raise

    def prepare(self) -> None:
        """Removes half a line, and the lines to ignore, from the file. Raises OSError.

        It is an error if the file was removed, replaced or truncated meanwhile: nobody would read further lines.
        """
        size = self._file.seek(0, os.SEEK_END)
        if size < self._size or not self._is_in_place():
            raise FileNotFoundError(errno.ENOENT, "the manifest was removed, replaced or cut while the run went on")
        if size > self._size:
            self._file.truncate(self._size)

    def append(self, entry: ManifestEntry) -> None:
        """Adds a line and forces it to disk. Raises OSError, and then the line does not count."""
        self.prepare()
        line = json_text(asdict(entry))
        rest = line
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
            os.fsync(self._file.fileno())
        except OSError:
            with suppress(OSError):  # if half a line stays now, `prepare` removes it before the next one
                self._file.truncate(self._size)
            raise
        self._size += len(line)
        self.entries[entry.id] = entry

    def close(self) -> None:
        """Releases the lock; a manifest without lines is removed. Never raises: every line is on disk already."""
        with suppress(OSError):
            if self._is_in_place() and self._file.seek(0, os.SEEK_END) == 0:
                self.path.unlink()
        with suppress(OSError):
            self._file.close()

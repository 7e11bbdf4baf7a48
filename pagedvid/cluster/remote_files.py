"""A folder anywhere that fsspec can write to: a local or shared folder, s3://, gs://, memory://."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pagedvid.cluster.library import files_library
from pagedvid.errors import ConfigError
from pagedvid.shown import shown


class RemoteFiles:
    """The files of one folder, by name. Every method raises OSError, or what the file system raises in its place."""

    def __init__(self, url: str) -> None:
        """`url`: a path, or PROTOCOL://PLACE. Raises ConfigError for a protocol that is unknown or not installed."""
        library = files_library()
        try:
            self._files, self._root = library.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise ConfigError(f"{shown(url)} cannot be written to: {error}") from error
        self.url = url

    def make(self) -> None:
        """Makes the folder unless it is there."""
        self._files.makedirs(self._root, exist_ok=True)

    def names(self) -> list[str]:
        """Of all files, sorted."""
        found: list[Any] = self._files.ls(self._root, detail=False) if self._files.exists(self._root) else []
        return sorted(str(path).rstrip("/").rpartition("/")[2] for path in found)

    def num_bytes(self, name: str) -> int | None:
        """Size of a file; None where there is none."""
        path = self._path(name)
        return int(self._files.size(path)) if self._files.exists(path) else None

    def read(self, name: str) -> bytes:
        """The content of a file."""
        content: bytes = self._files.cat_file(self._path(name))
        return content

    def write(self, name: str, content: bytes) -> None:
        """Writes a whole file; object stores show it only once it is complete."""
        self._files.pipe_file(self._path(name), content)

    def upload(self, source: Path, name: str) -> None:
        """Copies a file of this machine."""
        self._files.put_file(str(source), self._path(name))

    def rename(self, name: str, new_name: str) -> None:
        """Replaces what has the new name. Object stores copy the file and remove the first one."""
        self._files.mv(self._path(name), self._path(new_name))

    def remove(self, name: str) -> None:
        """Removes a file."""
        self._files.rm_file(self._path(name))

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

"""One process at a time works on a data folder."""

from __future__ import annotations

import fcntl
from pathlib import Path

from pagedvid.service.errors import StorageError


class FolderLock:
    """Held from its making to its release, or to the end of the process."""

    def __init__(self, folder: Path) -> None:
        """Makes the folder if it is not there. Raises StorageError."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = (folder / "pagedvid.lock").open("a")
        except OSError as error:
            raise StorageError(f"{folder} cannot be written to: {error.strerror}; use another data folder") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise StorageError(f"another pagedvid works in {folder}; stop it, or use another data folder") from None

    def release(self) -> None:
        """Releases the folder for other processes."""
        self._file.close()

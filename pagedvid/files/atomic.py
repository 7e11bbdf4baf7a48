"""Files that get their name only when they are complete.

A file is written in its folder under a temporary name and renamed at the end, so a killed run may leave temporary files
behind but never half a video. `--resume` recognizes them by their prefix and removes them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PREFIX, _SUFFIX = ".pagedvid-", ".tmp"


def temporary_path(path: Path) -> Path:
    """The path of the file that becomes `path`; in the same folder, so that renaming it is atomic."""
    return path.with_name(f"{_PREFIX}{path.name}{_SUFFIX}")


def is_temporary(name: str) -> bool:
    """Whether a file of this name is one that becomes another."""
    return name.startswith(_PREFIX) and name.endswith(_SUFFIX)


def publish(path: Path, temporary: Path | None = None) -> None:
    """Renames the finished temporary file to `path`, once its bytes are on disk. Raises OSError.

    `temporary`: None: `temporary_path(path)`.
    """
    temporary = temporary or temporary_path(path)
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)
    with suppress(OSError):  # some file systems cannot do it, and the file is complete under its name in any case
        _force_names(path.parent)


def _force_names(folder: Path) -> None:
    """Forces the names of a folder's files to disk, so that a rename survives a loss of power. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def discard(path: Path) -> None:
    """Removes the temporary file of `path`, if there is one.

    Never raises, because it is called after a failure and might fail for the same reason. A file that cannot be removed
    now is removed by the next run in the folder, which recognizes its name.
    """
    with suppress(OSError):
        temporary_path(path).unlink()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields the temporary path to write to. The file is published when the block ends, or removed after an error.

    Raises OSError.
    """
    try:
        yield temporary_path(path)
        publish(path)
    except BaseException:
        discard(path)
        raise


def remove_stale(folder: Path) -> int:
    """Removes the temporary files that killed runs left in `folder`; returns their number. Raises OSError."""
    stale = list(folder.glob(f"{_PREFIX}*{_SUFFIX}"))
    for path in stale:
        path.unlink(missing_ok=True)
    return len(stale)

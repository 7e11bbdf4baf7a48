"""Files that appear under their name only when they are whole.

A file is written next to its place under a temporary name and moved there at the end, so that a killed run leaves
temporary files behind but never half a video. The prefix makes them recognizable: `--resume` removes them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PREFIX, _SUFFIX = ".pagedvid-", ".tmp"


def temporary_path(path: Path) -> Path:
    """The name that `path` has while it is being written; in the same folder, so that moving it is atomic."""
    return path.with_name(f"{_PREFIX}{path.name}{_SUFFIX}")


def publish(path: Path) -> None:
    """Moves a finished temporary file to `path`, its bytes on disk first. Raises OSError."""
    temporary = temporary_path(path)
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)


def discard(path: Path) -> None:
    """Removes the temporary file of `path`, if there is one.

    Never raises: it runs where something has failed already, perhaps for the same reason. A file that cannot be removed
    now keeps its recognizable name, and the next run in the folder removes it.
    """
    with suppress(OSError):
        temporary_path(path).unlink()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields the temporary path to write to; publishes it when the block ends without error, else removes it.

    Raises OSError.
    """
    try:
        yield temporary_path(path)
        publish(path)
    except BaseException:
        discard(path)
        raise


def remove_stale(folder: Path) -> int:
    """Removes the temporary files that a killed run left in `folder`; returns how many there were. Raises OSError."""
    stale = list(folder.glob(f"{_PREFIX}*{_SUFFIX}"))
    for path in stale:
        path.unlink(missing_ok=True)
    return len(stale)

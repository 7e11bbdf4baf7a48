"""Files and folders that a user names, checked before any library opens them.

A library would wait for ever for a pipe, and its error for a Git LFS pointer would be "header too large". Errors here
begin with the path and end with what to do.
"""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

from pagedvid.errors import ConfigError
from pagedvid.shown import named

_NUM_FIRST_BYTES = 64
_LFS = b"version https://git-lfs.github.com/spec/"
_PAGES = (b"<!doctype html", b"<html")
_SPECIAL = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def is_folder(path: Path) -> bool:
    """Whether there is a folder. Raises ConfigError for a path that cannot be looked up."""
    mode = _mode(path)
    return mode is not None and stat.S_ISDIR(mode)


def is_file(path: Path) -> bool:
    """Whether there is a plain file. Raises ConfigError for a path that cannot be looked up."""
    mode = _mode(path)
    return mode is not None and stat.S_ISREG(mode)


def exists(path: Path) -> bool:
    """Whether there is anything. Raises ConfigError for a path that cannot be looked up."""
    return _mode(path) is not None


def readable_file(path: Path, advice: str = "download it again") -> Path:
    """`path`, if it is a readable file that is not empty.

    Raises ConfigError, which ends with `advice` unless something more specific is known.
    """
    mode = _mode(path)
    if mode is None:
        raise ConfigError(f"{named(path)} is missing{_dangling(path)}; {advice}")
    if stat.S_ISDIR(mode):
        raise ConfigError(f"{named(path)} is a folder where a file is expected; {advice}")
    if not stat.S_ISREG(mode):
        raise ConfigError(f"{named(path)} is {_SPECIAL.get(stat.S_IFMT(mode), 'not a plain file')}; give a plain file")
    if problem := problem_of_content(path):
        raise ConfigError(f"{named(path)} {problem}")
    return path


def problem_of_content(path: Path) -> str | None:
    """What is wrong with a plain file by its first bytes, and what to do; None: its content may be good."""
    try:
        with path.open("rb") as file:
            first = file.read(_NUM_FIRST_BYTES)
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    if not first:
        return "is empty; download it again"
    if first.startswith(_LFS):
        return "is a Git LFS pointer, not the file itself; run `git lfs pull` in its repository, or download it"
    if first.lstrip().lower().startswith(_PAGES):
        return "is a web page, not the file itself: the download failed or needs a login; download it again"
    return None


def read_json(path: Path, advice: str = "download it again") -> Any:
    """The content of a JSON file. Raises ConfigError when it is missing, cannot be read or is not JSON."""
    try:
        return json.loads(readable_file(path, advice).read_text(encoding="utf-8"))
    except ConfigError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{named(path)} cannot be read as JSON ({error}); {advice}") from error


def _mode(path: Path) -> int | None:
    """Its kind and permissions; None: there is nothing."""
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"{named(path)} cannot be looked up: {reason}; give the path of a file or folder") from error


def _dangling(path: Path) -> str:
    return f": it is a link to {named(path.readlink())}, which does not exist" if path.is_symlink() else ""

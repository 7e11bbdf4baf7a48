"""Text that people write: UTF-8 from regular files of bounded size, without what no file can contain."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from pagedvid.errors import ConfigError
from pagedvid.shown import named, shown
from pagedvid.units import format_bytes


def read_text(path: Path, what: str, max_bytes: int) -> str:
    """The content of a UTF-8 file without its byte order mark; `what` says in messages what the file is for.

    Devices, named pipes and sockets are refused, because opening or reading them may never end. Raises `ConfigError`.
    """
    try:
        if stat.S_ISDIR(mode := os.stat(path).st_mode):
            raise ConfigError(f"{what} {named(path)} cannot be read: it is a folder; give a file")
        if not (stat.S_ISREG(mode) or _is_shell_pipe(path)):
            raise ConfigError(f"{what} {named(path)} cannot be read: it is a device or a pipe; give a regular file")
        with path.open("rb") as file:
            content = file.read(max_bytes + 1)
    except FileNotFoundError:
        raise ConfigError(f"{what} {named(path)} cannot be read: there is no such file") from None
    except OSError as error:
        raise ConfigError(f"{what} {named(path)} cannot be read: {error.strerror}") from None
    if len(content) > max_bytes:
        raise ConfigError(f"{what} {named(path)} is larger than {format_bytes(max_bytes)}, which is the most; split it")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{what} {named(path)} cannot be read: not UTF-8 text (byte {error.start}); save it as UTF-8"
        ) from None


def _is_shell_pipe(path: Path) -> bool:
    """Whether it is what a shell passes for <(command): the output of a program, which ends when the program does."""
    return os.path.realpath(path).rpartition("/")[2].startswith("pipe:[")


def check_text(text: str) -> None:
    """Raises `ConfigError` for what no UTF-8 file or file name can contain: a NUL, or half of a surrogate pair."""
    wrong = next((char for char in text if char == "\0" or "\ud800" <= char <= "\udfff"), None)
    if wrong is not None:
        half = f"half of a surrogate pair (U+{ord(wrong):04X}), which UTF-8 cannot encode"
        what = "a NUL character, which no file name can contain" if wrong == "\0" else half
        raise ConfigError(f"{shown(text)} contains {what}; remove it")

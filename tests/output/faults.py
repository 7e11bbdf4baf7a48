"""System calls that fail: each in turn, once or from then on.

Everything the package does with files from Python passes through a few functions of os, io, fcntl and PyAV. Inside
`failing_call` those that concern one folder are counted, and one of them raises instead of doing its work. What C code
writes by itself is out of their reach: `file_size_limit` makes the kernel refuse it.
"""

from __future__ import annotations

import builtins
import errno
import fcntl
import io
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import av

ERRORS = (errno.ENOSPC, errno.EIO, errno.EROFS, errno.EINTR, errno.ENOENT)

_WITH_PATH = ("mkdir", "open", "replace", "rename", "unlink", "stat", "scandir", "listdir")
_OF_FILES = ("write", "read", "truncate", "seek", "flush", "close")
_OF_CONTAINERS = ("mux", "close")


@dataclass
class Calls:
    """Counts calls; call number `fails_at` (from 1) raises, and with `persists` all later ones do."""

    folder: Path
    error_number: int
    fails_at: int
    persists: bool
    count: int = 0
    failed: str = ""
    """Names of the calls that failed."""

    def made(self, name: str, then: Callable[[], object] = lambda: None) -> None:
        """To be called before a call does its work. `then`: what to do before it fails, such as closing a file."""
        self.count += 1
        if self.count == self.fails_at or (self.persists and self.count > self.fails_at):
            self.failed += f" {name}"
            then()
            raise OSError(self.error_number, os.strerror(self.error_number))

    def concern(self, path: object) -> bool:
        if not isinstance(path, str | bytes | os.PathLike):
            return False
        return Path(os.fsdecode(path)).is_relative_to(self.folder)


class Counted:
    """A file or container whose calls are counted."""

    def __init__(self, inner: Any, calls: Calls, names: tuple[str, ...]) -> None:
        self._inner, self._calls, self._names = inner, calls, names

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._inner, name)
        if name not in self._names:
            return method

        def counted(*args: Any, **kwargs: Any) -> Any:
            self._calls.made(name, self._inner.close if name == "close" else lambda: None)
            return method(*args, **kwargs)

        return counted

    def __enter__(self) -> Counted:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def failing_call(folder: Path, error_number: int, fails_at: int, persists: bool = False) -> Iterator[Calls]:
    """Inside, the call number `fails_at` on files in `folder` (or on the folder itself) fails."""
    calls = Calls(folder, error_number, fails_at, persists)

    def counted(function: Callable[..., Any], name: str, names: tuple[str, ...] = ()) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if name not in ("fsync", "flock"):
                path = args[0] if args else kwargs.get("path", kwargs.get("file", "."))
                if not calls.concern(path):
                    return function(*args, **kwargs)
            calls.made(name)
            result = function(*args, **kwargs)
            return Counted(result, calls, names) if names else result

        return call

    patches = [mock.patch.object(os, name, counted(getattr(os, name), name)) for name in (*_WITH_PATH, "fsync")]
    patches += [mock.patch.object(fcntl, "flock", counted(fcntl.flock, "flock"))]
    patches += [mock.patch.object(module, "open", counted(open, "open", _OF_FILES)) for module in (builtins, io)]
    patches += [mock.patch.object(av, "open", counted(av.open, "av.open", _OF_CONTAINERS))]
    for patch in patches:
        patch.start()
    try:
        yield calls
    finally:
        for patch in reversed(patches):
            patch.stop()


@contextmanager
def file_size_limit(num_bytes: int) -> Iterator[None]:
    """Inside, no file of this process grows beyond a size: the kernel fails such writes, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

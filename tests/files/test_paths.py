"""What can be at a path that a user names instead of the expected file."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from pagedvid.errors import ConfigError
from pagedvid.files.paths import exists, is_file, is_folder, read_json, readable_file
from pagedvid.shown import named


def pipe(folder: Path) -> Path:
    os.mkfifo(folder / "p.json")
    return folder / "p.json"


def listening(folder: Path) -> Path:
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(folder / "s"))
    return folder / "s"


def link(folder: Path, target: str) -> Path:
    (folder / "l").symlink_to(target)
    return folder / "l"


def written(folder: Path, content: bytes) -> Path:
    (folder / "f.json").write_bytes(content)
    return folder / "f.json"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "absent", "absent is missing; download it again"),
        (lambda folder: written(folder, b"{}") / "below", "below is missing"),
        (lambda folder: folder, "is a folder where a file is expected"),
        (pipe, "p.json is a pipe; give a plain file"),
        (listening, "s is a socket; give a plain file"),
        (lambda folder: Path("/dev/zero"), "/dev/zero is a device; give a plain file"),
        (lambda folder: link(folder, "gone"), "is missing: it is a link to gone, which does not exist"),
        (lambda folder: link(folder, "l"), "cannot be looked up: Too many levels of symbolic links"),
        (lambda folder: folder / "a\0b", r"a\\x00b cannot be looked up: embedded null byte"),
        (lambda folder: folder / ("a" * 10_000), r"a+ \.\.\. a+ cannot be looked up: File name too long"),
        (lambda folder: written(folder, b""), "is empty"),
        (lambda folder: written(folder, b"[" * 100_000), "cannot be read as JSON"),
        (lambda folder: written(folder, b"\xff{}"), "cannot be read as JSON"),
    ],
)
def test_every_wrong_kind_of_path_is_named_and_nothing_waits(make, message, tmp_path: Path):
    with pytest.raises(ConfigError, match=message) as caught:
        read_json(make(tmp_path))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_a_file_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch):
    """Tests may run as root, who may read everything."""
    file = written(tmp_path, b"{}")

    def refuse(*_arguments, **_named):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ConfigError, match=r"f.json cannot be read: Permission denied"):
        readable_file(file)


def test_what_is_there_is_found(tmp_path: Path):
    file = written(tmp_path, b'{"a": [1]}')
    assert read_json(file) == {"a": [1]} and readable_file(link(tmp_path, "f.json")).is_symlink()
    assert is_file(file) and exists(file) and not is_folder(file)
    assert is_folder(tmp_path) and exists(tmp_path) and not is_file(tmp_path)
    assert not exists(tmp_path / "absent") and not is_file(file / "below")
    assert not is_file(pipe(tmp_path)) and exists(tmp_path / "p.json")


def test_control_letters_do_not_reach_the_terminal():
    assert named(Path("a\x1b[31mb")) == "a\\x1b[31mb" and named(Path("日本/é")) == "日本/é"

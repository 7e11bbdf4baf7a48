"""Text files: regular, bounded, UTF-8."""

import os
from pathlib import Path

import pytest

from pagedvid.errors import ConfigError
from pagedvid.files.text import check_text, read_text


def test_reads_text_without_its_mark(tmp_path):
    (tmp_path / "a").write_bytes(b"\xef\xbb\xbfeins\r\n\xe2\x80\xa8zwei")
    assert read_text(tmp_path / "a", "file", 100) == "eins\r\n\u2028zwei"


def test_what_might_never_end_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, reason in ((tmp_path / "pipe", "a device or a pipe"), ("/dev/zero", "a device"), (tmp_path, "a folder")):
        with pytest.raises(ConfigError, match=reason):
            read_text(type(tmp_path)(path), "file", 100)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"caf\xe9", r"not UTF-8 text \(byte 3\)"),
        ("text".encode("utf-16"), "not UTF-8 text"),
        (b"x" * 101, "larger than 100 B, which is the most"),
    ],
)
def test_what_is_no_text(tmp_path, content, reason):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(ConfigError, match=reason):
        read_text(tmp_path / "a", "file", 100)


@pytest.mark.parametrize(("name", "reason"), [("none", "there is no such file"), ("a" * 5000, "File name too long")])
def test_what_is_not_there(tmp_path, name, reason):
    with pytest.raises(ConfigError, match=f"file .* cannot be read: {reason}") as caught:
        read_text(tmp_path / name, "file", 100)
    assert len(str(caught.value)) < 400


def test_text_that_no_file_can_hold():
    check_text("\U0001f600 \u2028\x1b")
    for text, reason in (("a\0", "NUL character"), ("a\ud83d", r"U\+D83D"), ("\udcff", r"U\+DCFF")):
        with pytest.raises(ConfigError, match=f"contains .*{reason}"):
            check_text(text)


def test_the_output_of_a_command_is_read(tmp_path):
    """In bash: --config <(command)."""
    read_end, write_end = os.pipe()
    with os.fdopen(write_end, "wb") as pipe:
        pipe.write(b"words")
    try:
        assert read_text(Path(f"/dev/fd/{read_end}"), "file", 10) == "words"
    finally:
        os.close(read_end)

"""Fingerprints of files: what they tell apart, what they do not, and how little they read."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from pagedvid.errors import ConfigError
from pagedvid.files.fingerprint import BEGINNING_BYTES, BLOCK_BYTES, NUM_BLOCKS, SMALL_BYTES, fingerprint
from tests.output.faults import failing_call

LARGE_BYTES = 5 * SMALL_BYTES


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def large(path: Path, changed_byte: int | None = None, num_bytes: int = LARGE_BYTES) -> Path:
    """A sparse file of zeros, one byte of which may be another."""
    with path.open("wb") as file:
        file.truncate(num_bytes)
        if changed_byte is not None:
            file.seek(changed_byte)
            file.write(b"x")
    return path


def test_equal_contents_have_the_same_fingerprint_under_any_name(tmp_path):
    files = [written(tmp_path / name, b"abc") for name in ("a", "b")]
    assert fingerprint(files[:1]) == fingerprint(files[1:])
    assert len(fingerprint(files)) == 32


@pytest.mark.parametrize("other", [b"abd", b"ab", b"abcd", b"", b"abc\0"])
def test_a_small_file_differs_in_any_byte(other, tmp_path):
    assert fingerprint([written(tmp_path / "a", b"abc")]) != fingerprint([written(tmp_path / "b", other)])


def test_order_and_borders_of_files_count(tmp_path):
    a, b, ab, empty = (written(tmp_path / name, name.encode()) for name in ("a", "b", "ab", "c"))
    empty.write_bytes(b"")
    assert len({fingerprint(files) for files in ([a, b], [b, a], [ab], [ab, empty], [empty, ab], [])}) == 6


def test_every_long_change_of_a_large_file_shows(tmp_path):
    """Wherever it begins: it is longer than the distance of two blocks."""
    length = -(-LARGE_BYTES // (NUM_BLOCKS - 1))
    before = fingerprint([large(tmp_path / "before")])
    for first in np.random.default_rng(0).integers(0, LARGE_BYTES - length, 20):
        changed = large(tmp_path / f"changed{first}", LARGE_BYTES - 1)
        with changed.open("r+b") as file:
            file.seek(LARGE_BYTES - 1)
            file.write(b"\0")
            file.seek(first)
            file.write(b"x" * length)
        assert fingerprint([changed]) != before


@pytest.mark.parametrize("place", [0, BEGINNING_BYTES - 1, LARGE_BYTES - 1, LARGE_BYTES - BLOCK_BYTES])
def test_beginning_and_end_of_a_large_file_count_to_the_byte(place, tmp_path):
    assert fingerprint([large(tmp_path / "a", place)]) != fingerprint([large(tmp_path / "b")])


def test_the_size_of_a_large_file_counts(tmp_path):
    one, other = large(tmp_path / "a"), large(tmp_path / "b", num_bytes=LARGE_BYTES + 1)
    assert fingerprint([one]) != fingerprint([other])


def test_a_byte_between_two_blocks_does_not_show(tmp_path):
    """As the module says; the test keeps the promise and its limit together."""
    between = (LARGE_BYTES - BLOCK_BYTES) * 100 // (NUM_BLOCKS - 1) + BLOCK_BYTES
    assert fingerprint([large(tmp_path / "a", between)]) == fingerprint([large(tmp_path / "b")])


def test_a_file_is_read_once_and_again_when_it_changes(tmp_path):
    file = written(tmp_path / "a", b"abc")
    before = fingerprint([file])
    with failing_call(tmp_path, 5, fails_at=2, persists=True) as calls:
        assert fingerprint([file]) == before
    assert calls.count == 1  # it is looked up, not read
    written(file, b"abd")
    os.utime(file, ns=(1, 1))
    assert fingerprint([file]) != before


@pytest.mark.parametrize("wrong", ["absent", "."])
def test_what_cannot_be_read_is_named(wrong, tmp_path):
    with pytest.raises(ConfigError, match=r"cannot be read: (No such file|Is a directory)"):
        fingerprint([tmp_path / wrong])

"""Every writer, with each of its system calls failing in turn: a file is complete, or as it was before."""

from __future__ import annotations

import errno
import json
import os
from itertools import count

import numpy as np
import pytest

from pagedvid.engine.requests import VideoRequest
from pagedvid.files.atomic import replacing
from pagedvid.output.latents import LatentWriter, read_latents
from pagedvid.output.manifest import Manifest, ManifestEntry
from pagedvid.output.mp4 import VideoWriter, read_frames, write_errors
from pagedvid.output.sheet import SheetRow, write_sheet
from tests.output.faults import ERRORS, failing_call, file_size_limit

FRAMES = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)
LATENTS = np.random.default_rng(0).normal(size=(4, 3, 8, 8)).astype(np.float32)


def write_through(writer, frames):
    try:
        writer.add(frames)
        writer.finish()
        writer.publish()
    finally:
        writer.discard()


def write_video(path):
    write_through(VideoWriter(path, 8.0, 2), FRAMES)


def write_latents(path):
    write_through(LatentWriter(path, 8.0), LATENTS)


def write_json(path):
    with replacing(path) as temporary:
        temporary.write_bytes(b"{}" * 1000)


def write_picture(path):
    write_sheet(path, [SheetRow(path.parent / "none.mp4", "a caption that takes some bytes", "and a note")])


WRITERS = {
    "a.mp4": (write_video, lambda path: len(read_frames(path)) == len(FRAMES)),
    "a.safetensors": (write_latents, lambda path: np.array_equal(read_latents(path)[0], LATENTS)),
    "a.json": (write_json, lambda path: path.read_bytes() == b"{}" * 1000),
    "sheet.png": (write_picture, lambda path: path.read_bytes().endswith(b"IEND\xaeB`\x82")),
}


def try_to_write(write, path):
    """Whether the file was written; only the errors that a writer may raise are caught."""
    try:
        write(path)
    except write_errors():
        return False
    return True


def assert_whole_or_as_before(path, is_whole, was_written, may_leave_a_temporary=False):
    assert is_whole(path) if was_written else path.read_text() == "before"
    if not may_leave_a_temporary:
        assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("error_number", ERRORS, ids=errno.errorcode.get)
@pytest.mark.parametrize("persists", [False, True], ids=["once", "for good"])
@pytest.mark.parametrize("name", WRITERS)
def test_each_call_fails_in_turn(name, persists, error_number, tmp_path):
    write, is_whole = WRITERS[name]
    path = tmp_path / name
    for number in count(1):
        path.write_text("before")
        with failing_call(tmp_path, error_number, number, persists) as calls:
            was_written = try_to_write(write, path)
        if not calls.failed:
            break
        assert_whole_or_as_before(path, is_whole, was_written, may_leave_a_temporary="unlink" in calls.failed)
        for file in tmp_path.iterdir():
            file.unlink()
    assert number > 3, "there were calls to fail"
    assert is_whole(path)


@pytest.mark.parametrize("name", WRITERS)
def test_the_disk_is_full_at_any_size(name, tmp_path):
    """Bytes that C code writes count too."""
    write, is_whole = WRITERS[name]
    path = tmp_path / name
    write(path)
    size, num_failed = path.stat().st_size, 0
    for room in [0, 1, *range(size // 9, size, size // 9), size - 1]:
        path.write_text("before")
        with file_size_limit(room):
            was_written = try_to_write(write, path)
        num_failed += not was_written
        assert_whole_or_as_before(path, is_whole, was_written)
    assert num_failed > 5


def test_no_file_stays_open(tmp_path):
    """On a full disk a run may try more videos than a process may have open files."""
    open_before = len(os.listdir("/proc/self/fd"))
    for write, _ in WRITERS.values():
        for room in (0, 1, 40, 50, 5000):
            with file_size_limit(room):
                try_to_write(write, tmp_path / "a")
    assert len(os.listdir("/proc/self/fd")) == open_before


def entry(id):
    return ManifestEntry(id, "done", "a prompt of some length", seed=1, num_frames=8, settings={"cache.codec": "int2"})


@pytest.mark.parametrize("error_number", ERRORS, ids=errno.errorcode.get)
@pytest.mark.parametrize("persists", [False, True], ids=["once", "for good"])
def test_a_manifest_has_the_lines_it_took_and_no_torn_ones(tmp_path, persists, error_number):
    path = tmp_path / "manifest.jsonl"
    for number in count(1):
        path.unlink(missing_ok=True)
        taken = set()
        with failing_call(tmp_path, error_number, number, persists) as calls:
            try:
                manifest = Manifest(path)
            except OSError:
                continue
            for id in "abc":
                try:
                    manifest.append(entry(id))
                    taken.add(id)
                except OSError:
                    assert calls.failed
            manifest.close()
        reopened = Manifest(path)
        if persists:  # a line can be whole although forcing it to disk and taking it back both failed
            assert taken <= set(reopened.entries)
        else:
            assert taken == set(reopened.entries) and len(taken) >= 2
        reopened.close()
        if not calls.failed:
            break
    assert taken == set("abc") and number > 10


@pytest.mark.parametrize("room", range(0, 700, 23))
def test_a_manifest_on_a_full_disk(tmp_path, room):
    manifest, taken, refused = Manifest(tmp_path / "manifest.jsonl"), [], []
    with file_size_limit(room):
        for id in "abc":
            try:
                manifest.append(entry(id))
                taken.append(id)
            except OSError as error:
                assert error.errno == errno.EFBIG
                refused.append(id)
    assert taken + refused == list("abc")  # once there is no room, none of them fits
    manifest.append(entry("d"))  # there is room again
    manifest.close()
    lines = (tmp_path / "manifest.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == [*taken, "d"]
    request = VideoRequest("d", "a prompt of some length", 8, seed=1)
    assert entry("d").differences(request, {"cache.codec": "int2"}) == []

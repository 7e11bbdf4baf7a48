"""The manifest survives kills, full disks and second runs."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from dataclasses import asdict

import pytest

from pagedvid.engine.requests import VideoRequest
from pagedvid.errors import ConfigError
from pagedvid.output.manifest import Manifest, ManifestEntry


def entry(id="a", status="done", **fields):
    return ManifestEntry(id, status, prompt="réd", seed=1, num_frames=8, settings={"cache.codec": "int2"}, **fields)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "manifest.jsonl"


@pytest.fixture
def opened(path):
    """Opens the manifest; closes all at the end."""
    manifests = []

    def open_(**options):
        manifests.append(Manifest(path, **options))
        return manifests[-1]

    yield open_
    for manifest in manifests:
        manifest._file.close()


def test_entries_are_on_disk_at_once_and_read_back(path, opened):
    manifest = opened()
    manifest.append(entry("a"))
    assert json.loads(path.read_text())["id"] == "a"
    manifest.append(entry("b", "failed", error="PromptError: no"))
    manifest.close()
    assert opened().entries == {"a": entry("a"), "b": entry("b", "failed", error="PromptError: no")}


def test_the_newest_line_about_an_id_counts(opened):
    manifest = opened()
    manifest.append(entry(status="failed"))
    manifest.append(entry(status="done"))
    manifest.close()
    assert opened().entries["a"].status == "done"


@pytest.mark.parametrize("cut", [1, 10, 60])
def test_a_torn_last_line_is_cut_off_and_written_over(path, opened, cut):
    manifest = opened()
    manifest.append(entry("a"))
    manifest.append(entry("b"))
    manifest.close()
    path.write_bytes(path.read_bytes()[:-cut])
    manifest = opened()
    assert set(manifest.entries) == {"a"}
    manifest.append(entry("c"))
    manifest.close()
    assert set(opened().entries) == {"a", "c"}


@pytest.mark.parametrize("line", ["not json", "3", "[]", '{"id": "a"}', '{"unknown": 1}'])
def test_a_damaged_line_is_named(path, opened, line):
    path.write_text(line + "\n")
    with pytest.raises(ConfigError, match=r"manifest\.jsonl line 1 is not a manifest entry"):
        opened()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("id", ["a"]), ("id", 7), ("prompt", ["x"]), ("seed", True), ("num_frames", "8"), ("settings", 1.5)),
        *(("inputs", [1]), ("error", 3), ("details", None), ("zzz", 1)),
    ],
)
def test_a_field_of_another_kind_is_named(path, opened, field, value):
    fields = {**asdict(entry()), field: value}
    path.write_text(json.dumps(asdict(entry("b"))) + "\n" + json.dumps(fields) + "\n")
    with pytest.raises(ConfigError, match=r"manifest.jsonl line 2 is not a manifest entry") as caught:
        opened()
    assert len(str(caught.value)) < 400


def test_a_deep_line_is_named(path, opened):
    path.write_text("[" * 200_000 + "\n")
    with pytest.raises(ConfigError, match=r"line 1 is not a manifest entry .*nested too deeply"):
        opened()


def test_a_device_is_no_manifest(path, opened):
    path.symlink_to("/dev/zero")
    with pytest.raises(ConfigError, match="not a regular file"):
        opened()


def test_a_second_run_is_refused_until_the_first_has_ended(opened):
    first = opened()
    with pytest.raises(ConfigError, match="another pagedvid is writing to"):
        opened()
    first.append(entry())
    first.close()
    assert set(opened().entries) == {"a"}


def test_starting_anew_forgets_everything(path, opened):
    manifest = opened()
    manifest.append(entry())
    manifest.close()
    manifest = opened(start_anew=True)
    assert manifest.entries == {}
    manifest.append(entry("b"))
    manifest.close()
    assert set(opened().entries) == {"b"}


def test_starting_anew_loses_nothing_before_there_is_something_new(path, opened):
    manifest = opened()
    manifest.append(entry())
    manifest.close()
    opened(start_anew=True).close()
    assert set(opened().entries) == {"a"}


def test_a_manifest_without_lines_leaves_no_file(path, opened):
    opened().close()
    assert not path.exists()


@pytest.mark.parametrize("text", ["\ud83d", "a\udcffb", "\x00\x1f\u2028", "x" * 10**6, '"\\'])
def test_any_text_is_kept(path, opened, text):
    """Halves of surrogate pairs cannot be written in UTF-8; here they are escaped, and read back as they were."""
    manifest = opened()
    manifest.append(ManifestEntry("a", "failed", text, 1, 8, {"cache.codec": text}, error=text))
    manifest.close()
    path.read_text(encoding="utf-8")
    (back,) = opened().entries.values()
    assert (back.prompt, back.error, back.settings) == (text, text, {"cache.codec": text})


def test_a_line_that_could_not_be_taken_back_is_cut_off_before_the_next(path, opened, monkeypatch):
    manifest = opened()
    manifest.append(entry("a"))
    disk = DiskWithRoomFor(manifest._file, 20)
    disk.truncate = DiskWithRoomFor(manifest._file, 0).write  # fails alike
    manifest._file, whole = disk, manifest._file
    with pytest.raises(OSError, match="No space left"):
        manifest.append(entry("b"))
    manifest._file = whole
    manifest.append(entry("c"))
    assert [json.loads(line)["id"] for line in path.read_text().splitlines()] == ["a", "c"]


@pytest.mark.parametrize("how", ["removed", "replaced", "cut"])
def test_a_manifest_that_is_not_there_any_more_takes_no_lines(path, opened, how):
    manifest = opened()
    manifest.append(entry("a"))
    if how == "cut":
        os.truncate(path, 20)
    else:
        path.unlink()
    if how == "replaced":
        path.write_text("")
    before = path.read_bytes() if path.exists() else None
    with pytest.raises(OSError, match="removed, replaced or cut"):
        manifest.append(entry("b"))
    assert set(manifest.entries) == {"a"}
    manifest.close()
    assert (path.read_bytes() if path.exists() else None) == before, "what is there now is not ours to change"


def test_a_file_that_a_run_removed_as_it_ended_is_made_again(path, opened, monkeypatch):
    """The second run opened it before it was removed, and locked it afterwards."""
    lock, ended = fcntl.flock, []

    def end_first(file, how):
        if not ended:
            ended.append(path.unlink())
        lock(file, how)

    monkeypatch.setattr(fcntl, "flock", end_first)
    opened().append(entry("a"))
    assert path.exists() and ended


def test_a_lock_that_cannot_be_had_leaves_nothing_open(path, monkeypatch):
    def no_locks(file, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(OSError, match="No locks available"):
        Manifest(path)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match="No locks available"):
        Manifest(path)
    assert len(os.listdir("/proc/self/fd")) == before


class DiskWithRoomFor:
    """A file that accepts a number of bytes and then reports a full disk."""

    def __init__(self, file, num_bytes):
        self._file, self._room = file, num_bytes

    def write(self, data):
        if not self._room:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = self._file.write(data[: self._room])
        self._room -= written
        return written

    def __getattr__(self, name):
        return getattr(self._file, name)


def test_a_line_that_does_not_fit_is_taken_back(path, opened):
    manifest = opened()
    manifest.append(entry("a"))
    before = path.read_bytes()
    manifest._file = DiskWithRoomFor(manifest._file, 20)
    with pytest.raises(OSError, match="No space left"):
        manifest.append(entry("b"))
    assert path.read_bytes() == before
    assert set(manifest.entries) == {"a"}


def test_a_line_written_in_pieces_is_whole(path, opened):
    manifest = opened()

    class Pieces(DiskWithRoomFor):
        def write(self, data):
            return self._file.write(data[:7])

    manifest._file = Pieces(manifest._file, 0)
    manifest.append(entry("a"))
    assert json.loads(path.read_text())["prompt"] == "réd"


def test_differences_name_what_was_before_and_what_is_now():
    before = entry()
    assert before.differences(VideoRequest("a", "réd", 8, 1), {"cache.codec": "int2"}) == []
    now = before.differences(VideoRequest("a", "blue", 16, 1), {"cache.codec": "int4", "new.key": 1})
    assert now == ["prompt: réd -> blue", "frames: 8 -> 16", "cache.codec: int2 -> int4", "new.key: None -> 1"]

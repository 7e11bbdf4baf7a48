"""Whole runs of the command line with each system call failing in turn, and on disks that are full at any size.

What must hold, whatever fails: one line says so, and the exit code. What was reported done is whole, with its json and
its line in the manifest; nothing else has a line; whatever has its final name is whole. A call that fails once costs at
most one video. Bad luck before anything was started changes nothing. A run after it, on a healthy disk, makes the rest.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

import pytest

from pagedvid.cli import generate
from pagedvid.models.build import resolve
from pagedvid.output.latents import read_latents
from pagedvid.output.mp4 import count_frames
from tests.cli.folders import manifest_lines
from tests.output.faults import ERRORS, failing_call, file_size_limit

NUM_FRAMES = 5
IDS = ("000-red", "001-green", "002-blue")


@dataclass
class End:
    """How a command ended."""

    code: int
    stdout: str
    stderr: str

    @property
    def done(self) -> list[str]:
        return sorted(re.findall(r"^done    (\S+)", self.stderr, re.MULTILINE))

    @property
    def failed(self) -> list[str]:
        return sorted(re.findall(r"^failed  (\S+)", self.stderr, re.MULTILINE))


def write_latents(monkeypatch, value: bool) -> None:
    """Whether the model is one whose latents are written."""

    def resolved(config):
        spec = resolve(config)
        return replace(spec, model=replace(spec.model, writes_latents=value))

    monkeypatch.setattr(generate, "resolved", resolved)


@pytest.fixture
def run(engines, command, prompts, tmp_path, monkeypatch):
    """run(options) -> End; into tmp_path/out. Latents are written, in a tenth of the time that videos take."""
    monkeypatch.setattr("os.fsync", lambda file: None)  # most of that time, and nothing here pulls the plug
    write_latents(monkeypatch, True)
    file = prompts("red", "green", "blue")
    words = ("generate", "--prompts", file, "--out", tmp_path / "out", "--frames", NUM_FRAMES)
    return lambda *options: End(*command(*words, *options))


def is_whole(path: Path) -> bool:
    return (count_frames(path) if path.suffix == ".mp4" else len(read_latents(path)[0])) == NUM_FRAMES


def videos(out: Path) -> list[Path]:
    return sorted(path for path in out.glob("*") if path.suffix in (".mp4", ".safetensors"))


def done_lines(out: Path) -> dict[str, dict]:
    """The newest line of each video, if it says that it is done."""
    lines = manifest_lines(out) if (out / "manifest.jsonl").exists() else []
    return {id: line for id, line in {line["id"]: line for line in lines}.items() if line["status"] == "done"}


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.glob("*") if path.suffix != ".tmp"}


def assert_sound(end: End, out: Path, before: dict[str, bytes]) -> None:
    assert all(is_whole(path) for path in videos(out))
    for id, line in done_lines(out).items():
        video, sidecar = out / line["details"]["file"], json.loads((out / f"{id}.json").read_text())
        assert video.stat().st_size == line["details"]["bytes"]
        assert (sidecar["id"], sidecar["seed"]) == (id, line["seed"])
    if end.code == 2:
        assert re.fullmatch(r"pagedvid: error: .*\n", end.stderr), end
        assert contents(out) in (before, before | {"manifest.jsonl": b""})
    else:
        assert end.code == bool(end.failed), end
        assert set(end.done) <= set(done_lines(out))


def assert_the_rest_can_be_made(end: End, run, engines, out: Path, *options: object) -> None:
    engines.clear()
    again = run("--resume", *options)
    assert again.code == 0, again
    assert not set(end.done) & {request.id for engine in engines for request in engine.submitted}
    assert set(done_lines(out)) == set(IDS) and all(is_whole(path) for path in videos(out))
    assert list(out.glob("*.tmp")) == []


@pytest.mark.parametrize("persists", [False, True], ids=["once", "for good"])
def test_each_call_fails_in_turn(run, engines, persists, tmp_path):
    out = tmp_path / "out"
    for number in count(1):
        shutil.rmtree(out, ignore_errors=True)
        with failing_call(out, ERRORS[number % len(ERRORS)], number, persists) as calls:
            end = run()
        if not calls.failed:
            break
        assert_sound(end, out, before={})
        if not persists:
            assert set(done_lines(out)) == set(end.done)
            assert end.code == 2 or len(end.failed) <= 1, "one call failed: one video at most is lost"
        if "unlink" not in calls.failed:
            assert list(out.glob("*.tmp")) == []
        assert_the_rest_can_be_made(end, run, engines, out)
    assert number > 60 and end.code == 0


@pytest.mark.parametrize("persists", [False, True], ids=["once", "for good"])
@pytest.mark.parametrize("option", ["--resume", "--overwrite"])
def test_what_was_there_before_is_not_lost(run, engines, option, persists, tmp_path):
    """--resume makes two videos that an earlier run did not reach, --overwrite makes all three with another seed."""
    out, earlier, seed = tmp_path / "out", tmp_path / "earlier", ("--seed", 7)
    run(*(seed if option == "--resume" else ()))
    if option == "--resume":
        lines = (out / "manifest.jsonl").read_text().splitlines(keepends=True)
        (out / "manifest.jsonl").write_text(lines[0])
        for id in IDS[1:]:
            (out / f"{id}.safetensors").unlink()
    out.rename(earlier)
    for number in count(1, step=4):
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(earlier, out)
        before = contents(out)
        with failing_call(out, ERRORS[number % len(ERRORS)], number, persists) as calls:
            end = run(option, *seed)
        if not calls.failed:
            break
        assert_sound(end, out, before)
        if end.done or option == "--resume":
            assert_the_rest_can_be_made(end, run, engines, out, *seed)
    assert number > 40 and end.code == 0


@pytest.mark.parametrize("name", ["latents", "videos"])
def test_the_disk_is_full_at_any_size(run, engines, command, prompts, name, monkeypatch, tmp_path):
    """Bytes that C code writes count too. The sheet and the manifest fail as well when they grow too large."""
    out = tmp_path / "out"
    write_latents(monkeypatch, name == "latents")
    prompts("red noise", "green", "blue noise")
    codes = set()
    for room in (0, 1, 500, 1000, 1500, 2000, 5_000, 20_000, 100_000):
        shutil.rmtree(out, ignore_errors=True)
        with file_size_limit(room):
            end = run()
        codes.add(end.code)
        assert_sound(end, out, before={})
        assert list(out.glob("*.tmp")) == []
    assert codes == {0, 1} and len(end.done) == 3


def test_calls_for_videos_and_their_sheet_fail(run, monkeypatch, tmp_path):
    """Some of the calls, because videos take longer."""
    out = tmp_path / "out"
    write_latents(monkeypatch, False)
    for number in count(1, step=11):
        shutil.rmtree(out, ignore_errors=True)
        with failing_call(out, ERRORS[number % len(ERRORS)], number) as calls:
            end = run()
        if not calls.failed:
            break
        assert_sound(end, out, before={})
        assert end.code == 2 or len(end.failed) <= 1
        assert "unlink" in calls.failed or list(out.glob("*.tmp")) == []
    assert number > 120 and end.code == 0

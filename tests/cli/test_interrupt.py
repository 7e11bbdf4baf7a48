"""Real processes that are interrupted, killed, or run out of disk."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pagedvid.cli.terminal import Interrupt
from tests.cli.folders import assert_whole_videos, manifest_lines, names

ROOT = Path(__file__).parents[2]
SLOW_RUN = Path(__file__).with_name("slow_run.py")
COLORS = ("red", "green", "blue", "red", "green", "blue")
NUM_FRAMES = 32
WAIT_SECONDS = 30


@pytest.fixture
def start(tmp_path, prompts):
    """start(seconds per step, options) -> a running `pagedvid generate` into tmp_path/out"""
    processes = []

    def run(step_seconds, *options, lines=COLORS, max_file_bytes=0):
        words = [SLOW_RUN, step_seconds, max_file_bytes, "generate", "--prompts", prompts(*lines)]
        words += ["--out", tmp_path / "out", "--frames", NUM_FRAMES, *options]
        process = subprocess.Popen(
            [sys.executable, *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        processes.append(process)
        return process

    yield run
    for process in processes:
        process.kill()
        process.communicate()


def wait_until(condition):
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.01)


def is_between_videos(out: Path) -> bool:
    """At least one video is done and another one is being written."""
    return any(out.glob("[!.]*.mp4")) and any(out.glob(".pagedvid-*.mp4.tmp"))


def test_killed_at_any_moment_and_resumed(start, tmp_path):
    out = tmp_path / "out"
    process = start(0.05)
    wait_until(lambda: is_between_videos(out))
    process.kill()
    process.communicate()
    done = assert_whole_videos(out, NUM_FRAMES)
    assert 0 < len(done) < len(COLORS)
    recorded = [line["id"] for line in manifest_lines(out)]
    assert set(recorded) <= set(done)
    made_at = {id: (out / f"{id}.mp4").stat().st_mtime_ns for id in recorded}

    stdout, stderr = start(0, "--resume").communicate(timeout=WAIT_SECONDS)
    assert len(assert_whole_videos(out, NUM_FRAMES)) == len(COLORS), stderr
    assert {id: (out / f"{id}.mp4").stat().st_mtime_ns for id in recorded} == made_at
    assert ("done before" in stdout) == bool(recorded)  # it may be killed before the first line of the manifest
    assert not recorded or f"{len(recorded)} done before" in stdout
    assert [line["status"] for line in manifest_lines(out)] == ["done"] * len(COLORS)
    assert not [name for name in names(out) if name.endswith(".tmp")]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_one_interrupt_ends_the_run_after_its_step(start, tmp_path, number):
    out = tmp_path / "out"
    process = start(0.05)
    wait_until(lambda: is_between_videos(out))
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=WAIT_SECONDS)
    assert process.returncode == 130
    assert "stopping after this step" in stderr
    assert "Traceback" not in stderr
    done = assert_whole_videos(out, NUM_FRAMES)
    assert 0 < len(done) < len(COLORS)
    assert sorted(line["id"] for line in manifest_lines(out)) == done
    assert not [name for name in names(out) if name.endswith(".tmp")]
    assert f"{len(done)} done, {len(COLORS) - len(done)} not made (--resume makes them)" in stdout


def test_the_second_interrupt_does_not_wait_for_the_step(start, tmp_path):
    process = start(3600)
    wait_until(lambda: (tmp_path / "out" / "manifest.jsonl").exists())
    time.sleep(1.0)
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=WAIT_SECONDS)
    assert process.returncode == 130
    assert "pagedvid: error: interrupted" in stderr
    assert "Traceback" not in stderr
    assert names(tmp_path / "out") == set()


BUSY_RUN = """
import torch
from pagedvid.cli import generate, main
from tests.cli.fake_engine import FakeEngine

def step(self):
    matrix = torch.ones(1000, 1000)
    while True:
        matrix @ matrix

FakeEngine.step = step
generate.create_engine = lambda config, prompts: FakeEngine()
main.command()
"""


def test_the_second_interrupt_does_not_wait_for_native_code(prompts, tmp_path):
    """A thread that the interpreter cuts off in the middle of PyTorch aborts the process."""
    out = tmp_path / "out"
    words = ["generate", "--prompts", prompts("red"), "--out", out]
    with subprocess.Popen(
        [sys.executable, "-c", BUSY_RUN, *map(str, words)], cwd=ROOT, stderr=subprocess.PIPE, text=True
    ) as process:
        wait_until(lambda: (out / "manifest.jsonl").exists())
        time.sleep(1.0)
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=WAIT_SECONDS)
    assert process.returncode == 130
    assert stderr.endswith("pagedvid: error: interrupted\n")
    assert names(out) == set()


def test_a_handler_that_python_did_not_install_is_no_obstacle(monkeypatch):
    """All that Python knows of such a handler is that there was one."""
    installed = {}
    monkeypatch.setattr(signal, "signal", lambda number, handler: installed.update({number: handler}))
    with Interrupt(lambda line: None):
        assert all(map(callable, installed.values()))
    assert installed == {signal.SIGINT: signal.SIG_DFL, signal.SIGTERM: signal.SIG_DFL}


def test_a_file_that_cannot_grow_fails_its_video_alone(start, tmp_path):
    out = tmp_path / "out"
    process = start(0, lines=("red", "green noise", "blue"), max_file_bytes=20_000)
    stdout, stderr = process.communicate(timeout=WAIT_SECONDS)
    assert process.returncode == 1, stderr
    assert "failed  001-green-noise" in stderr
    assert "File too large" in stderr
    assert "Traceback" not in stderr
    assert assert_whole_videos(out, NUM_FRAMES) == ["000-red", "002-blue"]
    assert not [name for name in names(out) if "001" in name]
    assert "videos  2 done, 1 failed" in stdout

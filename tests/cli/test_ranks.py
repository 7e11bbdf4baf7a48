"""`pagedvid generate --devices N`: real processes that share the heads of the demo model, which has three."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from pagedvid.cli.variables import LOCAL_RANK, RANK, RENDEZVOUS, TORCHRUN, WORLD_SIZE
from tests.cli.folders import names

FLAGS = ("--memory", "16MiB", "--set", "generate.threads=1", "--set", "engine.denoise_steps=2")
PROMPTS = ("a red circle moving left", "a blue square", "nothing that it knows")
WAIT_SECONDS = 200


def words(prompts: Path, out: Path, *options: object) -> list[str]:
    return [str(word) for word in ("generate", "--prompts", prompts, "--out", out, *FLAGS, *options)]


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, timeout=WAIT_SECONDS)


@pytest.mark.usefixtures("restore_threads")
def test_three_devices_make_the_files_of_one_however_they_were_started(tmp_path, prompts, command):
    """The second video of each run fails on all ranks alike, before anything is made."""
    file, frames = prompts(*PROMPTS), ("--frames", 16)
    assert command(*words(file, tmp_path / "one", *frames))[0] == 1
    own = run("pagedvid", *words(file, tmp_path / "own", *frames, "--devices", 3))
    launcher = ("torch.distributed.run", "--nproc-per-node", "3", "-m", "pagedvid")
    torchrun = run(*launcher, *words(file, tmp_path / "torchrun", *frames, "--devices", 3))
    videos = [name for name in names(tmp_path / "one") if name.endswith(".mp4")]
    assert len(videos) == 2
    for made, run_ in (("own", own), ("torchrun", torchrun)):
        assert "devices 3; bytes and pages are those of the first" in run_.stdout, run_.stderr
        assert names(tmp_path / made) == names(tmp_path / "one")
        for video in videos:
            assert (tmp_path / made / video).read_bytes() == (tmp_path / "one" / video).read_bytes()
    assert own.returncode == 1 and "no word of the prompt" in own.stderr
    assert "rank" not in own.stderr


def test_what_no_rank_can_build_is_said_once(tmp_path, prompts):
    made = run(
        "pagedvid", *words(prompts(*PROMPTS), tmp_path / "out", "--devices", 3, "--set", "attention.backend=triton")
    )
    assert made.returncode == 2
    errors = [line for line in made.stderr.splitlines() if "error" in line]
    assert len(errors) == 1, made.stderr
    assert errors[0].startswith("pagedvid: error: no attention backend can run on cpu")


@pytest.fixture
def started(tmp_path, prompts):
    """A run of three processes in the middle of its first video; rank 0 is killed at the end, and so must be all."""
    argv = words(prompts(*PROMPTS[:2]), tmp_path / "out", "--frames", 2000, "--devices", 3)
    process = subprocess.Popen(
        [sys.executable, "-m", "pagedvid", *argv], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_until(lambda: any((tmp_path / "out").glob(".pagedvid-*.mp4.tmp")) or process.poll() is not None)
    yield process
    process.kill()
    process.communicate()


def wait_until(condition) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.05)


def children_of(process: subprocess.Popen[str]) -> list[int]:
    path = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(pid) for pid in path.read_text().split()]


def is_running(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


def test_a_rank_that_dies_ends_all(started, tmp_path):
    first, second = children_of(started)
    os.kill(first, signal.SIGKILL)
    _, stderr = started.communicate(timeout=WAIT_SECONDS)
    assert started.returncode == 1
    assert "pagedvid: error: rank 1 was ended by signal 9" in stderr
    assert names(tmp_path / "out") == set() and not is_running(second)


def test_an_interrupt_ends_all_in_order(started, tmp_path):
    followers = children_of(started)
    started.send_signal(signal.SIGINT)
    stdout, stderr = started.communicate(timeout=WAIT_SECONDS)
    assert started.returncode == 130, stderr
    assert "2 not made" in stdout and "error" not in stderr
    assert not any(map(is_running, followers))


def test_nobody_is_left_when_rank_0_is_killed(started):
    followers = children_of(started)
    assert len(followers) == 2
    started.kill()
    wait_until(lambda: not any(map(is_running, followers)))


# ---------------------------------------------------------------------- refused at once


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--devices", 2], "2 ranks cannot share 3 KV heads evenly; the number of ranks can be 1, 3"),
        (["--devices", 0], "--devices: generate.devices is 0"),
        (["--devices", 3, "--set", "model.device=cuda:1"], "model.device is 'cuda:1' and generate.devices is 3"),
        (["--devices", 3, "--set", "attention.correction_unit=page"], 'Use "chunk"'),
    ],
)
def test_refused_before_any_process_starts(options, message, tmp_path, prompts, command):
    code, _, stderr = command(*words(prompts("a red circle"), tmp_path / "out", *options))
    assert code == 2 and message in stderr and not (tmp_path / "out").exists()


@pytest.mark.parametrize("subcommand", ["serve", "calibrate", "profile"])
def test_other_commands_work_on_one_device(subcommand, tmp_path, prompts, command):
    needs = {
        "serve": ["--data", tmp_path / "data"],
        "calibrate": ["--prompts", prompts("a red circle"), "--out", tmp_path / "tables"],
        "profile": ["--prompts", prompts("a red circle"), "--out", tmp_path / "profile"],
    }
    code, _, stderr = command(subcommand, *needs[subcommand], "--devices", 3)
    assert code == 2 and f"`pagedvid {subcommand}` works on one device" in stderr


def test_more_devices_than_there_are_are_refused(tmp_path, prompts, command, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    options = ("--devices", 3, "--set", "model.device=cuda")
    code, _, stderr = command(*words(prompts("a red circle"), tmp_path / "out", *options))
    assert code == 2 and "generate.devices is 3, but PyTorch sees 2 CUDA devices here" in stderr


def test_torchrun_with_another_number_is_refused(tmp_path, prompts, command, monkeypatch):
    for name, value in ((TORCHRUN, "x"), (RANK, "1"), (LOCAL_RANK, "1"), (WORLD_SIZE, "2")):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv(RENDEZVOUS, raising=False)
    for options in ([], ["--devices", 3]):
        code, _, stderr = command(*words(prompts("a red circle"), tmp_path / "out", *options))
        assert code == 2 and "torchrun started 2 processes" in stderr and "give --devices 2" in stderr


def test_the_plan_is_that_of_one_device(tmp_path, prompts, command):
    plain, shared = (
        command(*words(prompts("a red circle"), tmp_path / "out", "--kv", "int2", "--plan", *options))[1]
        for options in ([], ["--devices", 3])
    )
    assert "devices  3; bytes and pages are those of the first" in shared and "devices" not in plain
    assert pages_of(plain) == 3 * pages_of(shared)


def pages_of(plan: str) -> int:
    (line,) = (line for line in plan.splitlines() if line.startswith("as set"))
    return int(line.split()[3])

"""`pagedvid generate --ray` from end to end, with workers and drivers that are killed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys

import pytest
from PIL import Image

from pagedvid.cli import cluster_run
from pagedvid.cluster.cluster import Cluster
from pagedvid.cluster.engine_builder import ModelFacts
from pagedvid.cluster.file_outlet import ProgressEvent
from tests.cli.fake_engine import FRAMES_PER_CHUNK, KillingEngine
from tests.cli.folders import assert_whole_videos, manifest_lines, names
from tests.cluster.processes import ROOT, Head, actors_of, joining, kill_all, ray_head, wait_until

LINES = (
    "a large red circle moving left on a black background",
    "a small white cross staying still on a navy background",
    "a large green square moving right on a black background",
    "a small blue triangle moving up on a gray background",
)
NUM_FRAMES = 24
HOW = ("--frames", NUM_FRAMES, "--memory", "64MiB", "--set", "engine.reproducible=true", "--set", "generate.threads=1")

pytestmark = [pytest.mark.usefixtures("restore_threads"), pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def head():
    with ray_head() as head:
        yield head


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict[str, bytes]:
    """The files that a run in one process writes, by name."""
    folder = tmp_path_factory.mktemp("alone")
    (folder / "prompts.txt").write_text("\n".join(LINES))
    words = ["generate", "--prompts", folder / "prompts.txt", "--out", folder / "out", *HOW]
    subprocess.run([sys.executable, "-m", "pagedvid", *map(str, words)], cwd=ROOT, check=True, capture_output=True)
    return videos(folder / "out")


def videos(out) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.glob("[!.]*.mp4")}


@pytest.fixture
def start(tmp_path, prompts):
    """start(options) -> a running `pagedvid generate` into tmp_path/out, in a session of its own"""
    processes = []

    def run(*options):
        words = ["generate", "--prompts", prompts(*LINES), "--out", tmp_path / "out", *HOW, *options]
        process = subprocess.Popen(
            [sys.executable, "-m", "pagedvid", *map(str, words)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        processes.append(process)
        return process

    yield run
    for process in processes:
        process.kill()
        process.communicate()


def test_a_worker_is_killed_and_all_videos_are_those_of_one_process(
    command, prompts, tmp_path, head: Head, alone, monkeypatch
):
    """Two workers make the videos; one of them ends in the middle of its first."""
    killed = []
    hear = cluster_run.ClusterRun._hear_of_video

    def hear_and_kill(self, event, worker) -> None:
        hear(self, event, worker)
        if isinstance(event, ProgressEvent) and not killed:
            killed.append(head.workers()[0])  # the other one may not have begun yet
            wait_until(lambda: len(head.workers()) == 2)
            os.kill(killed[0], signal.SIGKILL)

    monkeypatch.setattr(cluster_run.ClusterRun, "_hear_of_video", hear_and_kill)
    out = tmp_path / "out"
    code, stdout, stderr = command(
        "generate", "--prompts", prompts(*LINES), "--out", out, *HOW, "--ray", head.address, "--workers", 2
    )
    assert code == 0, stderr
    assert killed
    assert "lost    worker" in stderr and "videos begin again" in stderr
    assert f"videos  {len(LINES)} done" in stdout
    assert videos(out) == alone
    assert sorted(line["status"] for line in manifest_lines(out)) == ["done"] * len(LINES)  # none twice
    assert not [name for name in names(out) if name.endswith(".tmp")]
    wait_until(lambda: not head.workers())


def test_a_driver_is_killed_and_another_one_goes_on(start, tmp_path, head: Head, alone):
    out = tmp_path / "out"
    process = start("--ray", head.address, "--workers", 2)
    wait_until(lambda: process.poll() is not None or ((out / "manifest.jsonl").exists() and manifest_lines(out)))
    process.kill()
    process.communicate()
    wait_until(lambda: not head.workers())
    recorded = [line["id"] for line in manifest_lines(out)]
    assert 0 < len(recorded) < len(LINES)
    made_at = {id: (out / f"{id}.mp4").stat().st_mtime_ns for id in recorded}

    stdout, stderr = start("--ray", head.address, "--resume").communicate()
    assert f"{len(recorded)} done before" in stdout, stderr
    assert {id: (out / f"{id}.mp4").stat().st_mtime_ns for id in recorded} == made_at
    assert videos(out) == alone
    assert [line["status"] for line in manifest_lines(out)] == ["done"] * len(LINES)
    assert not [name for name in names(out) if name.endswith(".tmp")]

    _, stderr = start("--ray", head.address, "--resume", "--kv", "int4").communicate()
    assert "is of another job (cache.codec: " in stderr


def test_workers_find_files_whose_paths_are_relative(command, prompts, tmp_path, head: Head, monkeypatch):
    """They work in another folder than the driver."""
    Image.new("RGB", (32, 32), (0, 128, 128)).save(tmp_path / "given.png")
    path = prompts({"prompt": LINES[0], "id": "a", "image": "given.png"})
    monkeypatch.chdir(tmp_path)
    words = ("generate", "--prompts", path.name, "--out", "out", *HOW, "--ray", head.address, "--workers", 1)
    code, _, stderr = command(*words)
    assert code == 0, stderr
    assert manifest_lines(tmp_path / "out")[0]["inputs"]["image"] == "given.png"


def test_a_machine_is_lost(command, prompts, tmp_path, alone, monkeypatch):
    """There is no room for another worker in its place; the one that is left makes the videos of both."""
    machines = []
    hear = cluster_run.ClusterRun._hear_of_video

    def hear_and_kill(self, event, worker) -> None:
        hear(self, event, worker)
        if isinstance(event, ProgressEvent) and machines:
            wait_until(lambda: actors_of(machines[0]))
            kill_all(machines.pop())

    monkeypatch.setattr(cluster_run.ClusterRun, "_hear_of_video", hear_and_kill)
    out = tmp_path / "out"
    with ray_head(num_cpus=1) as head, joining(head) as machine:
        machines.append(machine)
        words = ("generate", "--prompts", prompts(*LINES), "--out", out, *HOW, "--ray", head.address, "--workers", 2)
        code, stdout, stderr = command(*words)
    assert code == 0, stderr
    assert "lost    worker" in stderr
    assert f"videos  {len(LINES)} done" in stdout
    assert videos(out) == alone


def test_ctrl_c_ends_all_workers(start, tmp_path):
    """As a terminal sends it: to all processes of the command."""
    out = tmp_path / "out"
    process = start("--ray", "local", "--workers", 2, "--frames", 20_000)
    wait_until(lambda: process.poll() is not None or len(actors_of(process.pid)) == 2)
    workers = actors_of(process.pid)
    wait_until(lambda: (out / "manifest.jsonl").exists())
    os.killpg(process.pid, signal.SIGINT)
    stdout, stderr = process.communicate()
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr
    assert f"{len(LINES)} not made (--resume makes them)" in stdout
    wait_until(lambda: not any(os.path.exists(f"/proc/{worker}") for worker in workers))
    assert not [name for name in names(out) if name.endswith(".tmp")]
    assert assert_whole_videos(out, NUM_FRAMES) == []


def test_a_prompt_that_kills_workers_fails_alone_at_a_url(command, prompts, tmp_path, head: Head, monkeypatch):
    facts = ModelFacts(8.0, FRAMES_PER_CHUNK)
    monkeypatch.setattr(Cluster, "load", lambda *_: (KillingEngine, facts))
    out = tmp_path / "out"
    words = ("generate", "--prompts", prompts("red", "green kills", "blue", "huge red", "plain"))
    words += ("--out", f"file://{out}", *HOW, "--ray", head.address, "--workers", 2)
    code, stdout, stderr = command(*words)
    assert code == 1
    assert "videos  2 done, 3 failed" in stdout
    assert "failed  001-green-kills  3 workers ended while they made this video" in stderr
    assert "failed  003-huge-red  needs 500 pages" in stderr
    assert {line["id"]: line["status"] for line in manifest_lines(out)} == {
        "000-red": "done",
        "001-green-kills": "failed",
        "002-blue": "done",
        "003-huge-red": "failed",
        "004-plain": "failed",
    }


class TestErrorsAtOnce:
    @pytest.fixture
    def refused(self, command, prompts, tmp_path):
        """refused(options) -> the line that says why; nothing was written"""

        def run(*options) -> str:
            code, _, stderr = command("generate", "--prompts", prompts(*LINES), "--out", tmp_path / "out", *options)
            assert code == 2, stderr
            assert not (tmp_path / "out").exists()
            return stderr.splitlines()[-1]

        return run

    def test_without_the_extra(self, refused, monkeypatch):
        monkeypatch.setitem(sys.modules, "ray", None)
        assert "pip install 'pagedvid[ray]'" in refused("--ray", "local")

    @pytest.mark.parametrize("listens", [False, True])
    def test_an_address_that_does_not_answer(self, refused, listens):
        with socket.socket() as mute:
            mute.bind(("127.0.0.1", 0))
            if listens:
                mute.listen()
            address = f"127.0.0.1:{mute.getsockname()[1]}"
            assert f"--ray {address} does not answer" in refused("--ray", address)

    @pytest.mark.parametrize("address", ["nowhere", "ray://host:10001", "host:port"])
    def test_what_is_no_address(self, refused, address):
        assert "write local, auto or HOST:PORT" in refused("--ray", address)

    def test_more_workers_than_devices(self, refused, head: Head):
        line = refused("--ray", head.address, "--workers", 3)
        assert "3 workers that take 1 CPU core each do not fit: Ray has 2 CPU cores and 0 GPUs" in line

    def test_gpus_where_there_are_none(self, refused, head: Head):
        assert "model.device is cpu" in refused("--ray", head.address, "--gpus-per-worker", 0.5)
        on_gpus = ("--set", "model.device=cuda", "--gpus-per-worker", 0.5)
        assert "1 workers that take 0.5 GPU and 1 CPU core each do not fit" in refused("--ray", head.address, *on_gpus)
        assert "Ray gives every worker its own GPU" in refused("--ray", "local", "--set", "model.device=cuda:1")

    def test_flags_that_need_ray(self, refused):
        assert "--workers goes with --ray" in refused("--workers", 2)

    def test_a_url_needs_ray(self, command, prompts):
        code, _, stderr = command("generate", "--prompts", prompts(*LINES), "--out", "memory://out")
        assert (code, "which is for workers on Ray" in stderr) == (2, True)

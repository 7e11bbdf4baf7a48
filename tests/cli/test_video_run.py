"""How a run shares its work with the worker: what the engine is given at a time, and what waits to be written."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from pagedvid.cli import generate as generate_module
from pagedvid.cli import video_run
from pagedvid.cli.video_files import VideoFiles
from pagedvid.errors import ConfigError
from pagedvid.output.manifest import Manifest
from tests.cli.fake_engine import FakeEngine
from tests.cli.folders import manifest_lines

NUM_VIDEOS = 20


class FakeFiles(VideoFiles):
    """Writes no video."""

    def write(self, chunk) -> None:
        if chunk.is_last:
            del self.pending[chunk.id]
            self.result.num_done += 1


@pytest.fixture
def generate(engines, command, prompts, tmp_path, monkeypatch) -> Callable[..., tuple[int, str, str]]:
    """generate(lines) with at most four videos in the engine."""
    monkeypatch.setattr(video_run, "MAX_IN_ENGINE", 4)
    return lambda *lines: command(
        "generate", "--prompts", prompts(*lines), "--out", tmp_path / "out", "--frames", 8, "--set", "generate.scale=1"
    )


def test_the_engine_knows_a_few_videos_at_a_time(generate, engines, monkeypatch) -> None:
    known, videos = [], FakeEngine.videos
    monkeypatch.setattr(FakeEngine, "videos", lambda self: (known.append(len(self._active)), videos(self))[1])
    monkeypatch.setattr(video_run, "VideoFiles", FakeFiles)
    assert generate(*["red"] * NUM_VIDEOS)[0] == 0
    assert max(known) == 4
    assert [request.id for request in engines[0].submitted] == [f"{number:03}-red" for number in range(NUM_VIDEOS)]


def test_wrong_prompts_are_all_named_before_a_video_is_made(generate, tmp_path) -> None:
    generate(*["red"] * 10, "nonsense", *["red"] * 9, "huge red")
    statuses = [line["status"] for line in manifest_lines(tmp_path / "out")]
    assert statuses == ["failed"] * 2 + ["done"] * 19


def test_a_video_that_is_refused_late_fails_alone(generate, monkeypatch) -> None:
    submit = FakeEngine.submit

    def refuse(self, request) -> None:
        if request.id == "009-red":
            raise ConfigError("its camera is gone")
        submit(self, request)

    monkeypatch.setattr(FakeEngine, "submit", refuse)
    code, stdout, stderr = generate(*["red"] * 12)
    assert code == 1 and "videos  11 done, 1 failed" in stdout
    assert "failed  009-red  its camera is gone\n" in stderr


def test_the_worker_waits_for_a_slow_disk(generate, engines, monkeypatch) -> None:
    """Frames that are not written yet are a few, whatever the number of videos."""
    monkeypatch.setattr(video_run, "MAX_UNWRITTEN", 3)
    made, written, ahead = [], [], []
    next_chunk = FakeEngine._next_chunk
    monkeypatch.setattr(FakeEngine, "_next_chunk", lambda self, it: (made.append(it), next_chunk(self, it))[1])

    class SlowFiles(FakeFiles):
        def write(self, chunk) -> None:
            time.sleep(0.01)
            ahead.append(len(made) - len(written))
            written.append(chunk)
            super().write(chunk)

    monkeypatch.setattr(video_run, "VideoFiles", SlowFiles)
    assert generate(*["red"] * NUM_VIDEOS)[0] == 0
    assert len(written) == 2 * NUM_VIDEOS
    assert max(ahead) <= 3 + 1 + 2  # in the queue, being written, and of a step that gives them out


def test_steps_and_files_have_threads_of_their_own(generate, monkeypatch) -> None:
    threads: dict[str, set[str]] = {"step": set(), "append": set()}

    def seen(owner: type, name: str) -> None:
        method = getattr(owner, name)

        def call(self, *words):
            threads[name].add(threading.current_thread().name)
            return method(self, *words)

        monkeypatch.setattr(owner, name, call)

    seen(FakeEngine, "step")
    seen(Manifest, "append")
    assert generate("red", "nonsense", "blue")[0] == 1
    assert threads == {"step": {"pagedvid-worker"}, "append": {"MainThread"}}


def test_no_thread_is_left(generate, engines, monkeypatch, tmp_path) -> None:
    """However a run ends."""

    def num_workers() -> int:
        return sum(thread.name == "pagedvid-worker" for thread in threading.enumerate())

    def refuse(config, prompts) -> FakeEngine:
        raise ConfigError("no such weights")

    before = num_workers()
    assert generate("red", "nonsense")[0] == 1
    assert num_workers() == before
    assert generate("huge red")[0] == 2
    monkeypatch.setattr(generate_module, "create_engine", refuse)
    assert generate("blue")[0] == 2
    assert num_workers() == before

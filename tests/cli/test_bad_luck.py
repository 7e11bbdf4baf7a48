"""Runs with bad luck: folders that disappear, an engine that fails, a log that cannot be written, odd texts."""

from __future__ import annotations

import shutil
import subprocess
import sys
import timeit
from functools import partial
from pathlib import Path

import pytest

from pagedvid.cli import generate as generate_module
from pagedvid.cli import video_run
from pagedvid.cli.progress import LineView
from pagedvid.cli.video_files import VideoFiles
from pagedvid.cli.video_run import VideoRun
from pagedvid.engine.requests import RequestFailure, VideoRequest
from pagedvid.errors import CapacityError, ConfigError, IntegrityError, NonFiniteError
from pagedvid.output.folder import OutputFolder
from pagedvid.output.mp4 import VideoWriter, read_frames
from pagedvid.service.worker import Worker
from tests.cli.fake_engine import FakeEngine
from tests.cli.folders import assert_whole_videos, manifest_lines, names

SLOW_RUN = Path(__file__).with_name("slow_run.py")


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@pytest.fixture
def generate(engines, command, prompts, out):
    """generate("red", "blue", options=[...]) -> (exit code, stdout, stderr)"""

    def run(*lines, options=("--frames", 8)):
        return command("generate", "--prompts", prompts(*lines), "--out", out, *options)

    return run


@pytest.fixture
def during(monkeypatch):
    """during(action): the action happens before the first second chunk of a video is written."""

    def install(action):
        write, is_done = VideoFiles.write, []

        def acted(self, chunk):
            if chunk.chunk_index == 1 and not is_done:
                is_done.append(True)
                action()
            write(self, chunk)

        monkeypatch.setattr(VideoFiles, "write", acted)

    return install


class TestFolders:
    def test_a_folder_that_vanishes(self, generate, during, out):
        during(lambda: shutil.rmtree(out))
        code, stdout, _ = generate("red", "blue")
        assert (code, "videos  0 done, 2 failed" in stdout) == (1, True)
        assert not out.exists()

    def test_a_file_in_place_of_the_folder(self, generate, during, out):
        during(lambda: (shutil.rmtree(out), out.write_text("mine")))
        code, stdout, _ = generate("red", "blue")
        assert (code, "videos  0 done, 2 failed" in stdout) == (1, True)
        assert out.read_text() == "mine"

    def test_a_folder_that_was_made_anew(self, generate, during, out):
        """The new folder's manifest does not have the videos, so they do not count."""
        during(lambda: (shutil.rmtree(out), out.mkdir()))
        code, stdout, _ = generate("red", "blue", "green")
        assert (code, "videos  0 done, 3 failed" in stdout) == (1, True)
        assert not list(out.glob("*.tmp"))

    @pytest.mark.parametrize("name", ["000-red.mp4", "000-red.json", ".pagedvid-000-red.mp4.tmp", "sheet.png"])
    def test_a_folder_in_place_of_a_file(self, generate, during, out, name):
        during(lambda: ((out / name).unlink(missing_ok=True), (out / name).mkdir()))
        code, stdout, stderr = generate("red", "blue")
        assert "done    001-blue" in stderr and (out / name).is_dir()
        assert code == (0 if name == "sheet.png" else 1)
        if name == "sheet.png":
            assert "warning" in stderr and "videos  2 done" in stdout
        else:
            assert "failed  000-red" in stderr

    def test_a_disk_that_is_full_from_the_first_byte(self, generate, during, out, monkeypatch):
        """The temporary file is /dev/full, so that writes of C code fail too."""
        open_video = OutputFolder.open_video

        def on_full_disk(self, request, *rest):
            if request.id == "000-red":
                (self.path / ".pagedvid-000-red.mp4.tmp").symlink_to("/dev/full")
            return open_video(self, request, *rest)

        monkeypatch.setattr(OutputFolder, "open_video", on_full_disk)
        code, _, stderr = generate("red", "blue")
        assert code == 1
        assert "failed  000-red  No space left on device" in stderr
        assert assert_whole_videos(out, 8) == ["001-blue"]
        assert not [name for name in names(out) if "000" in name]


THREE = ({"prompt": "red", "num_frames": 4}, {"prompt": "blue"}, {"prompt": "green"})


@pytest.fixture
def breaks_later(monkeypatch):
    """breaks_later(error): the first engine raises it once its first video is done."""

    def install(error):
        step, has_broken = FakeEngine.step, []

        def break_once(self):
            if not has_broken and self.submitted[0].id not in self._active:
                has_broken.append(True)
                raise error
            return step(self)

        monkeypatch.setattr(FakeEngine, "step", break_once)

    return install


class TestEngines:
    @pytest.mark.parametrize(
        ("error", "shown"),
        [
            (IntegrityError("page 3 is in two chunks"), "IntegrityError: page 3 is in two chunks"),
            (RuntimeError("CUDA error:\n gone"), "RuntimeError: CUDA error: gone"),
            (MemoryError(), "ModelError: MemoryError"),
        ],
    )
    def test_an_engine_that_breaks_is_built_again(self, generate, out, engines, breaks_later, error, shown):
        breaks_later(error)
        code, stdout, stderr = generate(*THREE)
        assert (code, len(engines)) == (0, 2)
        assert "videos  3 done" in stdout
        assert [line for line in stderr.splitlines() if "broke" in line] == [
            f"rebuilt the engine, which broke: {shown}"
        ]
        assert [request.id for request in engines[1].submitted] == ["001-blue", "002-green"]
        assert len(read_frames(out / "000-red.mp4")) == 4
        assert all(len(read_frames(out / f"{id}.mp4")) == 8 for id in ("001-blue", "002-green"))

    def test_a_video_that_breaks_every_engine_fails_alone(self, generate, out, engines, monkeypatch):
        step = FakeEngine.step

        def break_at_blue(self):
            self.latest_batch = tuple(self._active)[:1]
            if self.latest_batch == ("001-blue",):
                raise IntegrityError("page 3 is in two chunks")
            return step(self)

        monkeypatch.setattr(FakeEngine, "step", break_at_blue)
        code, stdout, stderr = generate(*THREE)
        assert (code, len(engines)) == (1, 4)
        assert "videos  2 done, 1 failed" in stdout
        said = "3 engines broke while they worked on this video: IntegrityError: page 3 is in two chunks"
        assert f"failed  001-blue  {said}\n" in stderr
        assert {line["id"]: line.get("error") for line in manifest_lines(out)} == {
            "000-red": None,
            "001-blue": f"WorkerError: {said}",
            "002-green": None,
        }

    def test_no_other_engine_keeps_what_is_done(self, generate, out, breaks_later, monkeypatch):
        breaks_later(IntegrityError("page 3 is in two chunks"))
        monkeypatch.setattr(video_run, "Worker", partial(Worker, build_delays_seconds=(0.0, 0.0)))
        build, built = generate_module.create_engine, []

        def build_once(*words):
            if built:
                raise RuntimeError("CUDA error:\n gone")
            built.append(build(*words))
            return built[-1]

        monkeypatch.setattr(generate_module, "create_engine", build_once)
        code, stdout, stderr = generate(*THREE)
        assert code == 1
        assert "videos  1 done, 2 not made (--resume makes them)" in stdout
        (line,) = (line for line in stderr.splitlines() if line.startswith("stopped "))
        assert "page 3 is in two chunks" in line and "2 attempts" in line and "CUDA error: gone" in line
        assert [line["id"] for line in manifest_lines(out)] == ["000-red"]
        assert names(out) == {"000-red.mp4", "000-red.json", "manifest.jsonl"}

    def test_a_prompt_that_no_one_expected_fails_alone(self, generate, out, monkeypatch):
        submit = FakeEngine.submit

        def choke(self, request):
            if request.id == "000-red":
                raise TypeError("TextEncodeInput must be Union[TextInputSequence]")
            submit(self, request)

        monkeypatch.setattr(FakeEngine, "submit", choke)
        code, _, stderr = generate("red", "blue")
        assert code == 1
        assert "failed  000-red  TypeError: TextEncodeInput must be" in stderr
        assert assert_whole_videos(out, 8) == ["001-blue"]

    @pytest.mark.parametrize("second", ["last chunk", "failure"])
    def test_a_video_that_ends_in_the_step_in_which_it_cannot_be_written(self, generate, out, monkeypatch, second):
        """The engine has finished with it already, so it cannot be cancelled."""
        step, add = FakeEngine.step, VideoWriter.add

        def two_at_once(self):
            outputs = step(self)
            for output in list(outputs):
                if output.request_id == "000-red" and not output.is_last:
                    (last,) = [it for it in step(self) if it.request_id == "000-red"]
                    fails = second == "failure"
                    outputs.append(RequestFailure("000-red", NonFiniteError("NaN")) if fails else last)
            return outputs

        def refuse(self, frames):
            if "000-red" in self.path.name:
                raise ValueError("odd frames")
            add(self, frames)

        monkeypatch.setattr(FakeEngine, "step", two_at_once)
        monkeypatch.setattr(VideoWriter, "add", refuse)
        code, _, stderr = generate({"prompt": "red"}, {"prompt": "blue", "num_frames": 12})
        assert code == 1
        assert stderr.count("failed  000-red  ValueError: odd frames") == 1
        assert "000-red" not in "".join(path.name for path in out.glob("*.mp4"))

    @pytest.mark.parametrize("error", [ConfigError("no such weights"), CapacityError("too little memory")])
    def test_an_engine_that_cannot_be_made_loses_no_earlier_run(self, generate, out, monkeypatch, error):
        generate("red", "blue")
        before = {path.name: path.read_bytes() for path in out.iterdir()}

        def refuse(config, prompts):
            raise error

        monkeypatch.setattr(generate_module, "create_engine", refuse)
        code, _, stderr = generate("red", "blue", options=["--overwrite", "--seed", 3])
        assert (code, stderr) == (2, f"pagedvid: error: {error}\n")
        assert {path.name: path.read_bytes() for path in out.iterdir()} == before


class TestTexts:
    @pytest.mark.parametrize("prompt", ["red \ud83d", "red \x00\x1b[31m", "red " + "x" * 10**6, "red 红色的圆 😀"])
    def test_any_prompt_that_reaches_the_writers(self, tmp_path, prompt, capsys):
        requests = [VideoRequest("odd", prompt, 4), VideoRequest("fine", "a blue square", 8)]
        with OutputFolder(tmp_path / "out", {}) as folder:
            result = VideoRun(FakeEngine, folder, requests, LineView(), 8.0, 1, {}).run()
            generate_module._write_sheet(folder, requests)
        assert (result.num_done, result.num_failed) == (2, 0)
        assert {line["id"]: line["prompt"] for line in manifest_lines(tmp_path / "out")}["odd"] == prompt
        assert (tmp_path / "out" / "sheet.png").exists()

    def test_a_record_that_cannot_even_be_made_fails_one_video(self, tmp_path, capsys):
        requests = [VideoRequest("odd", "red", 4, inputs={"camera": object()}), VideoRequest("fine", "blue", 8)]
        with OutputFolder(tmp_path / "out", {}) as folder:
            result = VideoRun(FakeEngine, folder, requests, LineView(), 8.0, 1, {}).run()
        assert (result.num_done, result.num_failed) == (1, 1)
        stderr = capsys.readouterr().err
        assert "failed  odd  TypeError: Object of type object is not JSON serializable" in stderr
        assert "the manifest could not be written: TypeError" in stderr
        assert names(tmp_path / "out") == {"fine.mp4", "fine.json", "manifest.jsonl"}


def test_a_log_that_cannot_be_written_costs_no_video(tmp_path, prompts):
    words = (SLOW_RUN, 0, 0, "generate", "--prompts", prompts("red", "nonsense", "blue"), "--out", tmp_path / "out")
    with open("/dev/full", "w") as full:
        code = subprocess.run([sys.executable, *map(str, words), "--frames", "8"], stderr=full).returncode
    assert code == 1, "one prompt cannot be used"
    assert assert_whole_videos(tmp_path / "out", 8) == ["000-red", "002-blue"]
    assert {line["id"]: line["status"] for line in manifest_lines(tmp_path / "out")} == {
        "000-red": "done",
        "001-nonsense": "failed",
        "002-blue": "done",
    }


class TestSpeeds:
    def test_a_speed_that_no_file_holds_is_refused_before_anything_is_made(self, generate, out, engines):
        code, _, stderr = generate("red", options=["--set", "generate.frames_per_second=0.00001"])
        assert (code, engines, stderr.count("\n")) == (2, [], 1)
        assert "generate.frames_per_second is 1e-05; allowed is null, or a number from 0.0001 to 240" in stderr
        assert not out.exists()


class TestResume:
    @pytest.mark.parametrize("content", [b"", b"torn"])
    def test_a_torn_video_is_made_again(self, generate, out, engines, content):
        generate("red", "blue")
        (out / "000-red.mp4").write_bytes(content)
        code, _, stderr = generate("red", "blue", options=["--frames", 8, "--resume"])
        assert (code, [request.id for request in engines[1].submitted]) == (0, ["000-red"])
        assert f"warning 000-red.mp4 is incomplete, it has {len(content)} of " in stderr
        assert assert_whole_videos(out, 8) == ["000-red", "001-blue"]


def test_what_is_shown_at_every_step_does_not_grow_with_the_number_of_videos(tmp_path):
    """If each step went through all videos, a thousand times as many would take a thousand times as long."""

    def seconds(num_videos):
        requests = [VideoRequest(str(number), "red", 4) for number in range(num_videos)]
        with OutputFolder(tmp_path / "out", {}) as folder:
            run = VideoRun(FakeEngine, folder, requests, LineView(), 8.0, 1, {})
            return min(timeit.repeat(run._show_status, number=100, repeat=10))

    assert seconds(100_000) < 20 * seconds(100)

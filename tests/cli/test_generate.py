"""`pagedvid generate` with a fake engine: files, failures, resuming, exit codes."""

from __future__ import annotations

import errno
import json
import re

import numpy as np
import pytest

from pagedvid import __version__
from pagedvid.output.manifest import Manifest
from pagedvid.output.mp4 import VideoWriter, read_frames
from tests.cli.fake_engine import BF16_BYTES, COLORS, STORED_BYTES
from tests.cli.folders import assert_whole_videos, manifest_lines, names


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@pytest.fixture
def generate(engines, command, prompts, out):
    """generate("red", "blue", options=[...]) -> (exit code, stdout, stderr)"""

    def run(*lines, options=("--frames", 6)):
        return command("generate", "--prompts", prompts(*lines), "--out", out, *options)

    return run


class TestFiles:
    def test_a_run_leaves_videos_settings_manifest_and_sheet(self, generate, out, engines):
        code, _, stderr = generate("a red circle", "a blue square")
        assert code == 0
        ids = ["000-a-red-circle", "001-a-blue-square"]
        assert names(out) == {*(f"{id}.{end}" for id in ids for end in ("mp4", "json")), "manifest.jsonl", "sheet.png"}
        assert "done    000-a-red-circle  6 frames" in stderr
        assert engines[0].is_closed

    def test_videos_show_what_the_engine_made(self, generate, out):
        generate("red", "blue")
        for id, color in (("000-red", "red"), ("001-blue", "blue")):
            frames = read_frames(out / f"{id}.mp4")
            assert len(frames) == 6
            assert frames[0].shape == (128, 128, 3)
            assert np.abs(np.array(frames).astype(int) - COLORS[color]).max() <= 6

    def test_the_sidecar_says_how_the_video_was_made(self, generate, out):
        generate({"prompt": "a red circle", "id": "a", "seed": 5}, options=["--frames", 6, "--kv", "int4"])
        sidecar = json.loads((out / "a.json").read_text())
        assert (sidecar["prompt"], sidecar["seed"], sidecar["num_frames"]) == ("a red circle", 5, 6)
        assert sidecar["settings"]["cache.codec"] == "int4"
        assert sidecar["versions"].keys() == {"pagedvid", "torch", "av"}
        assert sidecar["versions"]["pagedvid"] == __version__
        assert (sidecar["cache_peak_bytes"], sidecar["cache_bf16_bytes"]) == (STORED_BYTES, BF16_BYTES)
        assert sidecar["seconds_after_start"] >= 0

    def test_the_summary_counts_everything(self, generate, out):
        _, stdout, _ = generate("red", "blue", "green", options=["--frames", 6, "--kv", "int4/int2"])
        assert re.fullmatch(
            r"videos  3 done\n"
            r"frames  18 in [\d.]+ s = [\d.]+ frames/s\n"
            r"codec   int4/int2, correction measured\n"
            r"cache   145 KiB per video, 0\.148 of its 977 KiB in bf16\n"
            r"pages   peak 20 of 100 \(4\.50 KiB each\), padding waste 12\.5%\n"
            rf"files   {out}/\n",
            stdout,
        ), stdout

    def test_seeds_frames_and_settings_reach_the_engine(self, generate, engines):
        generate(
            {"prompt": "red", "num_frames": 2}, {"prompt": "blue", "seed": 9}, options=["--frames", 6, "--seed", 4]
        )
        assert [(it.num_frames, it.seed) for it in engines[0].submitted] == [(2, 4), (6, 9)]

    def test_scale_and_speed(self, generate, out):
        generate("red", options=["--frames", 2, "--set", "generate.scale=3", "--set", "generate.frames_per_second=5"])
        (id,) = assert_whole_videos(out, 2)
        assert read_frames(out / f"{id}.mp4")[0].shape == (48, 48, 3)
        assert json.loads((out / f"{id}.json").read_text())["frames_per_second"] == 5


class TestFailures:
    def test_failed_prompts_do_not_stop_the_rest(self, generate, out):
        code, stdout, stderr = generate("red", "nonsense", "green breaks", "blue")
        assert code == 1
        assert assert_whole_videos(out, 6) == ["000-red", "003-blue"]
        assert {line["id"]: line["status"] for line in manifest_lines(out)} == {
            "000-red": "done",
            "001-nonsense": "failed",
            "002-green-breaks": "failed",
            "003-blue": "done",
        }
        assert "videos  2 done, 2 failed" in stdout
        assert "failed  001-nonsense  no word of the prompt 'nonsense' is known" in stderr
        assert "failed  002-green-breaks  NaN among the keys of layer 3, head 1" in stderr
        assert not [name for name in names(out) if name.endswith(".tmp")]

    def test_the_manifest_keeps_the_reason(self, generate, out):
        generate("nonsense", "red")
        (failed,) = (line for line in manifest_lines(out) if line["status"] == "failed")
        assert failed["error"] == "PromptError: no word of the prompt 'nonsense' is known"

    def test_all_prompts_failing_is_no_success(self, generate, out):
        code, stdout, _ = generate("nonsense")
        assert code == 1
        assert "videos  0 done, 1 failed" in stdout
        assert "sheet.png" not in names(out)

    def test_memory_too_small_for_any_video_is_bad_input(self, generate, out):
        code, _, stderr = generate("huge red", "huge blue")
        assert code == 2
        assert "pagedvid: error: needs 500 pages at its peak; the whole pool has 100" in stderr
        assert names(out) == set()

    def test_memory_too_small_for_one_video_fails_that_video(self, generate):
        code, _, stderr = generate("huge red", "blue")
        assert code == 1
        assert "failed  000-huge-red  needs 500 pages" in stderr

    @pytest.mark.parametrize("failing_frame", [0, 4])
    def test_a_full_disk_fails_one_video_cleanly(self, generate, out, engines, monkeypatch, failing_frame):
        add = VideoWriter.add

        def add_until_full(self, frames):
            if self.path.stem == "001-green" and self.num_frames >= failing_frame:
                raise OSError(errno.ENOSPC, "No space left on device")
            add(self, frames)

        monkeypatch.setattr(VideoWriter, "add", add_until_full)
        code, _, stderr = generate("red", "green", "blue")
        assert code == 1
        assert "failed  001-green  No space left on device" in stderr
        assert assert_whole_videos(out, 6) == ["000-red", "002-blue"]
        assert not [name for name in names(out) if "001-green" in name]
        assert not engines[0].has_work

    def test_a_disk_too_full_even_for_the_manifest(self, generate, out, monkeypatch):
        append = Manifest.append

        def append_until_full(self, entry):
            if entry.id != "000-red":
                raise OSError(errno.ENOSPC, "No space left on device")
            append(self, entry)

        monkeypatch.setattr(Manifest, "append", append_until_full)
        code, _, stderr = generate("red", "green")
        assert code == 1
        assert "the manifest could not be written: No space left on device" in stderr
        assert [line["id"] for line in manifest_lines(out)] == ["000-red"]


class TestResume:
    def test_a_used_folder_needs_a_decision(self, generate, out):
        generate("red")
        code, _, stderr = generate("red")
        assert code == 2
        assert f"{out} is not empty" in stderr
        assert "--resume" in stderr
        assert "--overwrite" in stderr

    def test_what_is_done_is_skipped(self, generate, out, engines):
        generate("red")
        before = (out / "000-red.mp4").stat().st_mtime_ns
        code, stdout, _ = generate("red", "blue", options=["--frames", 6, "--resume"])
        assert code == 0
        assert [request.id for request in engines[1].submitted] == ["001-blue"]
        assert (out / "000-red.mp4").stat().st_mtime_ns == before
        assert "videos  1 done, 1 done before" in stdout

    def test_nothing_left_to_do_makes_no_engine(self, generate, engines):
        generate("red")
        code, stdout, _ = generate("red", options=["--frames", 6, "--resume", "--memory", "1GiB", "--concurrent", 1])
        assert (code, len(engines)) == (0, 1)
        assert "videos  0 done, 1 done before" in stdout

    @pytest.mark.parametrize(
        ("options", "difference"),
        [
            (["--frames", 7], "frames: 6 -> 7"),
            (["--frames", 6, "--seed", 1], "seed: 0 -> 1"),
            (["--frames", 6, "--kv", "int8"], "cache.codec: klt -> int8"),
            (["--frames", 6, "--set", "cache.layer_codecs={0: int8}"], "cache.layer_codecs: {} -> {'0': 'int8'}"),
            (["--frames", 6, "--set", "cache.page_rows=40"], "cache.page_rows: auto -> 40"),
            (["--frames", 6, "--set", "cache.correction=variance"], "cache.correction: off -> variance"),
        ],
    )
    def test_other_settings_are_refused_by_name(self, generate, options, difference):
        generate("red")
        code, _, stderr = generate("red", options=[*options, "--resume"])
        assert code == 2
        assert difference in stderr
        assert stderr.count("\n") == 1

    def test_another_prompt_under_the_same_id_is_refused(self, generate):
        generate({"prompt": "red", "id": "a"})
        code, _, stderr = generate({"prompt": "blue", "id": "a"}, options=["--frames", 6, "--resume"])
        assert code == 2
        assert "prompt: red -> blue" in stderr

    def test_failures_and_deleted_videos_are_made_again(self, generate, out, engines):
        generate("red", "green breaks", "blue")
        (out / "002-blue.mp4").unlink()
        generate("red", "green breaks", "blue", options=["--frames", 6, "--resume"])
        assert [request.id for request in engines[1].submitted] == ["001-green-breaks", "002-blue"]

    def test_a_torn_manifest_line_is_forgotten(self, generate, out, engines):
        generate("red", "blue")
        manifest = out / "manifest.jsonl"
        manifest.write_bytes(manifest.read_bytes()[:-20])
        code, _, _ = generate("red", "blue", options=["--frames", 6, "--resume"])
        assert code == 0
        assert len(engines[1].submitted) == 1
        assert {line["id"]: line["status"] for line in manifest_lines(out)} == {"000-red": "done", "001-blue": "done"}

    def test_a_damaged_manifest_line_is_named(self, generate, out):
        generate("red", "blue")
        manifest = out / "manifest.jsonl"
        manifest.write_bytes(b'{"id": 3}\n' + manifest.read_bytes())
        code, _, stderr = generate("red", "blue", options=["--frames", 6, "--resume"])
        assert code == 2
        assert "manifest.jsonl line 1 is not a manifest entry" in stderr

    def test_overwrite_starts_anew(self, generate, out, engines):
        generate("red", "blue")
        (out / "mine.txt").write_text("keep")
        code, _, _ = generate("red", options=["--frames", 6, "--kv", "int8", "--overwrite"])
        assert code == 0
        assert [line["id"] for line in manifest_lines(out)] == ["000-red"]
        assert (out / "mine.txt").read_text() == "keep"

    def test_stale_temporary_files_are_removed(self, generate, out):
        generate("red")
        (out / ".pagedvid-001-blue.mp4.tmp").write_bytes(b"half a video")
        generate("red", "blue", options=["--frames", 6, "--resume"])
        assert not [name for name in names(out) if name.endswith(".tmp")]

    def test_two_runs_cannot_share_a_folder(self, generate, out):
        out.mkdir()
        other = Manifest(out / "manifest.jsonl")
        try:
            code, _, stderr = generate("red")
            assert code == 2
            assert "another pagedvid is writing to" in stderr
        finally:
            other.close()


class TestBadInput:
    """Exit code 2, one line, and nothing is started."""

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (
                ["--kv", "int3"],
                "--kv: cache.codec is 'int3'; allowed is one of auto, klt, int, or a codec, or KEYS/VALUES such as",
            ),
            (["--kv", "int4/"], "--kv: cache.codec is 'int4/'; allowed is one of auto, klt, int, or a codec"),
            (["--set", "cache.layer_codecs={3-1: int4}"], "--set: cache.layer_codecs is {'3-1': 'int4'}; allowed is a"),
            (["--set", "cache.page_rows=4"], "--set: cache.page_rows is 4; allowed is auto, or a whole number"),
            (["--set", "cache.tables=none.bin"], "none.bin is not a file; `pagedvid calibrate` makes one"),
            (["--frames", "0"], "--frames: generate.num_frames is 0; allowed is a whole number from 1 to 100000"),
            (["--frames", "many"], "--frames: generate.num_frames is 'many'"),
            (["--seed", "1.5"], "--seed: generate.seed is 1.5"),
            (["--memory", "2 parsecs"], "--memory: cache.memory is '2 parsecs'"),
            (["--concurrent", "none"], "--concurrent: engine.concurrent is 'none'; allowed is auto, or a whole number"),
            (["--set", "cache.codek=int2"], '--set: unknown key "cache.codek" - did you mean "cache.codec"'),
            (["--set", "codec=int2"], "write it as section.key=value"),
            (["--set", "generate.seed=["], "cannot be read as a value"),
            (["--config", "none.yaml"], "configuration file none.yaml cannot be read: there is no such file"),
            (["--resume", "--overwrite"], "not allowed with argument"),
            (["--frobnicate"], "unrecognized arguments: --frobnicate"),
        ],
    )
    def test_flags(self, generate, out, engines, options, message):
        code, stdout, stderr = generate("red", options=options)
        assert (code, stdout, engines) == (2, "", [])
        assert message in stderr
        assert stderr.startswith("pagedvid: error: ")
        assert stderr.count("\n") == 1
        assert not out.exists()

    def test_prompts(self, command, tmp_path, out):
        code, _, stderr = command("generate", "--prompts", tmp_path / "none.txt", "--out", out)
        assert (code, stderr.count("\n")) == (2, 1)
        assert "there is no such file" in stderr
        assert not out.exists()

    def test_no_output_folder(self, command, prompts):
        code, _, stderr = command("generate", "--prompts", prompts("red"))
        assert code == 2
        assert "generate needs --out DIR" in stderr

    def test_output_path_that_is_a_file(self, generate, out):
        out.write_text("in the way")
        code, _, stderr = generate("red")
        assert code == 2
        assert f"cannot write to {out}" in stderr

    def test_unknown_model(self, command, prompts):
        code, _, stderr = command("generate", "--prompts", prompts("red"), "--plan", "--model", "sora")
        assert code == 2
        assert "unknown model 'sora'" in stderr

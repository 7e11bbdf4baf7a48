"""`pagedvid profile`, and the curves that `pagedvid calibrate` adds."""

from __future__ import annotations

import pytest
import torch

from pagedvid.budgets.profile import profile_of
from pagedvid.calibration.profile import ProfilingCache
from pagedvid.codecs.tables_file import load_calibration
from pagedvid.models.demo.weights import SHIPPED_WEIGHTS
from pagedvid.models.registry import TABLES_FILE_NAME

FAST = ("--frames", 16, "--set", "engine.denoise_steps=2", "--set", "generate.threads=1", "--memory", "16MiB")
LINES = (
    "a large red circle moving left on a black background",
    "a small white cross staying still on a navy background",
)
pytestmark = pytest.mark.usefixtures("restore_threads")


def test_curves_are_added_to_the_tables_that_the_model_has(command, prompts, tmp_path):
    out = tmp_path / "tables.safetensors"
    code, stdout, stderr = command("profile", "--prompts", prompts(*LINES), "--out", out, *FAST)
    assert code == 0, stderr
    made, shipped = load_calibration(out), load_calibration(SHIPPED_WEIGHTS / TABLES_FILE_NAME)
    assert torch.equal(made.tensors["keys.analysis"], shipped.tensors["keys.analysis"])
    profile = profile_of(made)
    assert profile is not None and "profiled on 2" in stdout
    assert (profile.ladder, profile.prompts, profile.recent_chunks, profile.has_windows) == ("klt", LINES, 4, False)
    for curves in (profile.keys_PLHR, profile.values_PLHR):
        falls = curves.mean(0)[..., :-1] > curves.mean(0)[..., 1:]
        assert float(falls.float().mean()) > 0.95
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_integers_need_no_tables(command, prompts, tmp_path):
    out, videos = tmp_path / "tables.safetensors", tmp_path / "videos"
    options = ("--ladder", "int", "--plot", tmp_path / "plot.png")
    code, _, stderr = command("profile", "--prompts", prompts(*LINES), "--out", out, *options, *FAST)
    assert code == 0, stderr
    made = load_calibration(out)
    profile = profile_of(made)
    assert not made.has_klt and profile is not None and profile.rungs == ("mean", "int2", "int4", "int8")
    assert (tmp_path / "plot.png").stat().st_size > 10_000
    settings = ("--set", f"cache.tables={out}", "--set", "cache.bits=2.25")
    code, stdout, stderr = command("generate", "--prompts", prompts(LINES[0]), "--out", videos, *settings, *FAST)
    assert code == 0, stderr
    assert "int, 2.25 bits a value, correction measured" in stdout


@pytest.mark.parametrize("command_name", ["profile", "calibrate"])
def test_an_interrupted_run_goes_on_to_the_same_numbers(command, prompts, tmp_path, command_name, monkeypatch):
    whole, parts = tmp_path / "whole.safetensors", tmp_path / "parts.safetensors"
    words = (command_name, "--prompts", prompts(*LINES), *FAST, "--out")
    assert command(*words, whole)[0] == 0
    measured: list[ProfilingCache] = []
    curves = ProfilingCache.curves

    def interrupt(self: ProfilingCache) -> object:
        measured.append(self)
        if len(measured) == 2:
            raise KeyboardInterrupt
        return curves(self)

    monkeypatch.setattr(ProfilingCache, "curves", interrupt)
    assert command(*words, parts)[0] == 130 and not parts.exists()
    assert list(tmp_path.glob(".parts*"))
    code, _, stderr = command(*words, parts)
    assert code == 0 and "goes on after 1 videos" in stderr
    first, second = load_calibration(whole), load_calibration(parts)
    assert first.facts == second.facts and first.calibrated_on == second.calibrated_on
    assert all(torch.equal(first.tensors[name], second.tensors[name]) for name in first.tensors)
    assert list(tmp_path.glob(".parts*")) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--profile-videos", 0), "--profile-videos is 0; give at least 1"),
        (("--plot", "plot.txt"), "allowed endings are .png, .svg, .pdf"),
        (("--model", "magi-1-4.5b"), "profile needs --prompts FILE for magi-1-4.5b"),
        (("--model", "magi-1-4.5b", "--ladder", "klt", "--prompts", "{prompts}"), "magi-1-4.5b has no tables"),
    ],
)
def test_bad_input(command, prompts, tmp_path, words, said):
    written = [str(prompts(*LINES)) if word == "{prompts}" else word for word in words]
    code, _, stderr = command("profile", "--out", tmp_path / "tables.safetensors", *FAST, *written)
    assert code == 2 and said in stderr and not (tmp_path / "tables.safetensors").exists()

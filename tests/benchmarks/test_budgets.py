"""The benchmark of budgets on an untrained model: every part runs, prints tables that fit, and writes its file."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

from budgets.profiles import measure_profile
from lib.caches import REFERENCE
from lib.lab import Lab
from lib.quality import draw_tasks
from pagedvid.budgets.profile import with_profile
from pagedvid.calibration.observe import ObservingCache
from pagedvid.codecs.tables_file import save_calibration
from pagedvid.models.common.checkpoint_files import TABLES_FILE_NAME
from pagedvid.models.demo.weights import load_demo

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "budgets.py"
TINY = ["--prompts", "2", "--profile-prompts", "1", "--steps", "1", "--processes", "1"]


@pytest.fixture(scope="module")
def program() -> ModuleType:
    """By its path: `import budgets` finds the folder."""
    spec = importlib.util.spec_from_file_location("budgets_program", PROGRAM)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def calibrated(weights: Path) -> Path:
    """The weights with klt tables and a profile beside them."""
    lab = Lab(load_demo(weights), [task.request for task in draw_tasks(2, 50)], 64, 1, weights)
    spec = lab.caches.spec(REFERENCE)
    cache = ObservingCache(spec, 2 * lab.caches.stream_bytes(spec))
    lab.loop(cache).generate()
    calibration = cache.calibration("demo")
    save_calibration(with_profile(calibration, measure_profile(lab, calibration)), weights / TABLES_FILE_NAME)
    return weights


def run(program: ModuleType, weights: Path, out: Path, *arguments: str) -> dict:
    program.main([*TINY, *arguments, "--weights", str(weights), "--out", str(out)])
    return json.loads(out.read_text())["results"]


def test_token_eviction(program: ModuleType, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "budgets.json"
    results = run(program, weights, out, "--parts", "eviction", "--bits", "16", "2.25")
    by_place = {(row["method"], row["budget"]): row for row in results["eviction"]}
    assert len(by_place) == 18
    for (_, budget), row in by_place.items():
        assert row["bits"] == pytest.approx(budget) and len(row["free"]) == len(row["held"]) == 2
        assert (min(row["free"]) > 55) == (min(row["held"]) > 55) == (budget == 16)
    printed = capsys.readouterr().out
    assert "LU-KV, ahead" in printed and max(map(len, printed.splitlines())) <= 80 + len(str(tmp_path))
    assert out.with_suffix(".png").is_file()


def test_bits_and_what_replaces_the_default(
    program: ModuleType, calibrated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = ["--bits", "2.25", "0.75", "--default-bits", "1.25", "--long-bits", "1.25", "--long-frames", "32"]
    results = run(program, calibrated, tmp_path / "x.json", "--parts", "bits", "default", "long", *short)
    by_place = {(row["method"], row["budget"]): row for row in results["bits"]}
    assert len(by_place) == 13 and ("by layer, today", 0.75) not in by_place
    assert all(row["bits"] <= budget + 0.01 for (_, budget), row in by_place.items())
    assert [row["method"] for row in results["default"]] == ["uniform klt", "by head", "by head + windows"]
    bf16, *others = results["long"]
    assert bf16["bits"] == 16 and len(others) == 3
    assert all(row["stream_bytes"] < 0.2 * bf16["stream_bytes"] for row in others)
    printed = capsys.readouterr().out
    assert "gain over uniform klt" in printed and "memory saved" in printed and "the old default" in printed


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--prompts", "1"], "two videos"),
        (["--long-frames", "8"], "24 frames are read"),
        (["--parts", "sound"], "invalid choice"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    program: ModuleType, given: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        program.parse(given)
    assert said in capsys.readouterr().err

"""The fidelity benchmark on an untrained model: every part runs, prints tables that fit, and writes its file."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "fidelity.py"
TINY = ["--prompts", "2", "--tensor-prompts", "1", "--steps", "1", "--processes", "1", "--cost-rounds", "1"]


@pytest.fixture(scope="module")
def program() -> ModuleType:
    """By its path: `import fidelity` finds the folder."""
    spec = importlib.util.spec_from_file_location("fidelity_program", PROGRAM)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(program: ModuleType, weights: Path, out: Path, *arguments: str) -> dict:
    program.main([*TINY, *arguments, "--weights", str(weights), "--out", str(out)])
    return json.loads(out.read_text())["results"]


def tables_of(printed: str) -> list[str]:
    """The printed lines without those that name files, since paths may be long."""
    return [line for line in printed.splitlines() if not line.startswith(("written to ", "drawn to "))]


def test_tensors_and_videos(
    program: ModuleType, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    storages = ["--storages", "RTN2 g64", "int2", "token4-g64"]
    out = tmp_path / "fidelity.json"
    results = run(program, weights, out, "--parts", "tensor", "video", "--families", "demo", *storages)
    schemes = results["tensor"]["families"]["demo"]
    assert list(schemes) == ["RTN2 g64", "int2", "token4-g64"]
    by_layer = schemes["int2"]["corrections"]["measured"]["dP"]["by_layer_and_head"]
    assert len(by_layer) == 2 and len(by_layer[0]) == 1
    rows = {(row["storage"], row["correction"], row["factor"]): row for row in results["video"]}
    assert ("RTN2 g64", "variance", None) in rows and ("int2", "measured", None) in rows
    assert {factor for storage, _, factor in rows if storage == "int2"} == {None, 0.5, 2.0, 4.0}
    for row in rows.values():
        assert len(row["psnr"]) == len(row["ssim"]) == len(row["right"]) == 2
    assert min(rows["token4-g64", "off", None]["psnr"]) > max(rows["RTN2 g64", "off", None]["psnr"])
    printed = capsys.readouterr().out
    assert "|meas.|" in printed and "gain in dB" in printed and "forced dB" in printed
    assert max(map(len, tables_of(printed))) <= 80
    assert results["answers"] and "2. At <= 2.3 bits" in printed
    assert out.with_suffix(".png").is_file()


def test_drift_and_cost(program: ModuleType, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drift_frames = ["--drift-prompts", "2", "--drift-frames", "48"]
    results = run(program, weights, tmp_path / "x.json", "--parts", "drift", "cost", *drift_frames)
    assert results["drift"][0]["storage"] == "bf16"
    assert all(len(row["detail"]) == 2 and len(row["detail"][0]) == 2 for row in results["drift"])
    assert {row["videos"] for row in results["cost"]} == {1, 8}
    assert all(0 < row["encode_ratio"] < 1 for row in results["cost"])
    assert not (tmp_path / "x.png").exists()
    assert max(map(len, tables_of(capsys.readouterr().out))) <= 80


def test_fp8(program: ModuleType, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    families = ["--families", "demo", "static scene", "--storages", "int2", "int8"]
    results = run(program, weights, tmp_path / "x.json", "--parts", "fp8", *families)
    assert {name: list(family) for name, family in results["fp8"].items()} == {
        "demo": ["int8", "int2"],
        "static scene": ["int8", "int2"],
    }
    assert results["fp8"]["static scene"]["int2"]["loss"] < 0.05 < results["fp8"]["static scene"]["int8"]["loss"]
    printed = capsys.readouterr().out
    assert "8-bit history" in printed and "verdict" in printed
    assert max(map(len, tables_of(printed))) <= 80


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--frames", "16"], "windows of 24 frames"),
        (["--drift-frames", "47"], "windows of 24 frames"),
        (["--prompts", "1"], "two videos"),
        (["--parts", "sound"], "invalid choice"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    program: ModuleType, given: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        program.parse(given)
    assert said in capsys.readouterr().err

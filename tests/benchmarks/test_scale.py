"""benchmarks/scale.py: a small day on few GPUs, and the tables that follow from what was measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import scale
from lib.pages import markers
from tests.benchmarks.scaling.costs import COSTS

SMALL = ["--sessions", "200", "--gpus", "3", "--median-seconds", "600", "--repetitions", "1"]


def test_the_whole_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(scale, "measure", lambda *_: COSTS)
    page, out = tmp_path / "page.md", tmp_path / "scale.json"
    page.write_text("".join("{}\n{}\n".format(*markers(name)) for name in ("day", "costs", "limits")))
    scale.main([*SMALL, "--out", str(out), "--readme", str(page)])
    results = json.loads(out.read_text())["results"]
    simulated, built = results["simulated"], results["designs"]["as built"]
    assert simulated["num_streams"] == simulated["num_admitted"] == 200
    assert simulated["streams_of_a_gpu"] == 4 and 0 < simulated["peak_streams"] <= 12
    assert results["measured"]["encode_us"] == COSTS.encode_us
    recorder = built["resources"][0]
    assert recorder["per_stream"] == pytest.approx(4 / 3 * 107_002)
    assert recorder["at_peak"] == pytest.approx(simulated["peak_streams"] * recorder["per_stream"] / 1e6)
    text, printed = page.read_text(), capsys.readouterr().out
    assert "| as built | recorder's thread | 142.67 ms/s | 7.0 (first) | 1.8 |" in text
    assert "as built: recorder's thread is full first, with 7.0 streams" in printed


def test_a_gpu_that_is_too_slow_is_refused() -> None:
    with pytest.raises(SystemExit, match="does not keep up with one stream"):
        scale.main([*SMALL, "--tokens-per-second", "1000"])


@pytest.mark.timeout(300)
def test_calls_through_ray() -> None:
    pytest.importorskip("ray")
    costs = scale.remote_costs(scale.moving_frames(2, 64, 64, 0), 1000, 5)
    assert costs["frames_bytes_per_second"] > 0 and costs["empty"] > 0

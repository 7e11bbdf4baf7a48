"""The serving benchmark: what comes when, the figures of visits, and a run of a few seconds against a real server."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from serving.figures import cells, figures
from serving.load import poisson_times, viewers_at
from serving.viewer import Visit

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "serving.py"


def test_arrivals_are_a_poisson_process():
    times = poisson_times(5.0, 2000.0, seed=0)
    gaps = np.diff(times)
    assert times == sorted(times) and times[0] > 0 and times[-1] < 2000
    assert gaps.mean() == pytest.approx(0.2, rel=0.05) and gaps.std() == pytest.approx(0.2, rel=0.05)
    assert times == poisson_times(5.0, 2000.0, seed=0) != poisson_times(5.0, 2000.0, seed=1)


def test_viewers_leave_when_the_load_ends():
    first, last = viewers_at([1.0, 7.0], 20, 4.0, stay_seconds=5.0, end_seconds=10.0, seed=0)
    assert (first.stay_seconds, last.stay_seconds) == (5.0, 3.0)
    assert first.num_frames == last.num_frames == 20


def test_figures_by_hand():
    smooth = Visit(0.0, None, [1.0, 3.0, 5.0], 24, played_seconds=9.0, waited_seconds=1.0, stalled_seconds=0.0)
    never = Visit(1.0, waited_seconds=10.0)
    found = figures([smooth, never, Visit(2.0, "full")])
    assert (found["viewers"], found["refused"], found["without_a_chunk"]) == (3, 1, 1)
    assert found["play_ratio"]["mean"] == pytest.approx(0.45)
    assert found["first_chunk_seconds"]["p50"] == pytest.approx(5.5)
    assert found["gap_seconds"] == {"p50": 2.0, "p99": 2.0}
    assert cells(found)[-1] == "1"


@pytest.mark.timeout(300)
def test_runs_and_writes(tmp_path, capsys):
    spec = importlib.util.spec_from_file_location("serving_program", PROGRAM)
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    short = ["--capacity-seconds", "2", "--crowd", "2", "--stay", "2", "--counted", "2", "--policies", "deadline"]
    short += ["--viewers", "4", "--gather", "0.5", "--long-stay", "2", "--memory", "8MiB"]
    program.main([*short, "--out", str(tmp_path / "x.json")])
    results = json.loads((tmp_path / "x.json").read_text())["results"]
    assert results["capacity_frames_per_second"] > 0
    assert [(row["workload"], row["policy"]) for row in results["policies"]] == [
        ("live", "deadline"),
        ("mixed", "deadline"),
    ]
    assert [row["codec"] for row in results["memory"]] == ["bf16", "auto"]
    for row in [*results["policies"], *results["memory"]]:
        assert row["refused"] == 0 and len(row["visits"]) == row["viewers"]
    assert "times as many sessions resident" in capsys.readouterr().out

"""The benchmark of workers on Ray: every case runs and is set against the one process of its round."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

import cluster
from cluster import ALONE, cpu_seconds, main


def test_a_process_without_ray_says_its_speed() -> None:
    parsed = type("Arguments", (), {"videos": 2, "frames": 8, "seed": 0})
    times, digests = cluster.run(parsed, ())  # type: ignore[arg-type]
    assert times["frames_per_second"] > 0 and times["start_seconds"] > 0
    assert len(digests) == 2


def test_seconds_of_a_process() -> None:
    assert cpu_seconds(os.getpid()) == pytest.approx(sum(os.times()[:2]), abs=0.1)


def test_a_row_per_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def made(arguments: object, flags: Sequence[str]) -> tuple[dict[str, float], set[str]]:
        num_workers = int(flags[flags.index("--workers") + 1]) if "--workers" in flags else 0
        speed = 10.0 * num_workers * 0.9 if num_workers else 10.0
        digests = {"a", "b"} if num_workers < 2 else {"a", "c"}
        return {"frames_per_second": speed, "start_seconds": 3.0, "driver_seconds_per_video": 0.012}, digests

    monkeypatch.setattr(cluster, "run", made)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    main(["--rounds", "2", "--out", str(tmp_path / "cluster.json")])
    rows = json.loads((tmp_path / "cluster.json").read_text())["results"]["rows"]
    assert {row["case"]: row["over_one_process"] for row in rows} == {ALONE: 1.0, "one worker": 0.9, "2 workers": 1.8}
    cells = [line.split()[-2:] for line in capsys.readouterr().out.splitlines()[2:5]]
    assert cells == [["-", "2"], ["12", "2"], ["12", "1"]]

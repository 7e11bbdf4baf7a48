"""The benchmark of busy cores: a tiny run makes videos in every way, and its loops end with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import busy_cores
from busy_cores import main


def test_a_command_says_its_speed_and_its_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed = type("Arguments", (), {"frames": 4, "seed": 0, "limit": 100.0})
    found = busy_cores.run(parsed, {"OMP_WAIT_POLICY": "PASSIVE"}, "1")  # type: ignore[arg-type]
    assert found["frames_per_second"] > 0 and found["threads"] is None


def test_a_run_beyond_the_limit_counts_as_that_long() -> None:
    parsed = type("Arguments", (), {"frames": 4, "seed": 0, "limit": 0.01})
    found = busy_cores.run(parsed, {}, "1")  # type: ignore[arg-type]
    assert found["frames_per_second"] == pytest.approx(8 * 4 / 0.01)


def test_a_row_per_load_and_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loops: list[busy_cores.subprocess.Popen[bytes]] = []
    start = busy_cores.subprocess.Popen

    def started(command: list[str], **options: object) -> busy_cores.subprocess.Popen[bytes]:
        process = start(command, **options)
        if "while True: pass" in command:
            loops.append(process)
        return process

    def made(arguments: object, variables: dict[str, str], threads: str) -> dict[str, object]:
        running = sum(loop.poll() is None for loop in loops)
        speed = {"1": 20.0, "2": 40.0}.get(threads, 30.0) / (1 + running)
        return {"frames_per_second": speed, "threads": 2 if threads == "auto" else None}

    monkeypatch.setattr(busy_cores.subprocess, "Popen", started)
    monkeypatch.setattr(busy_cores, "run", made)
    monkeypatch.setattr(busy_cores, "cores_used_by_others", lambda seconds: 0.1)
    monkeypatch.setattr(busy_cores.os, "sched_getaffinity", lambda process: {0, 1})
    main(["--rounds", "2", "--out", str(tmp_path / "x.json")])
    rows = {(row["load"], row["case"]): row for row in json.loads((tmp_path / "x.json").read_text())["results"]["rows"]}
    assert len(rows) == 8 and len(loops) == 4 and all(loop.poll() is not None for loop in loops)
    assert rows["idle", "default"]["frames_per_second"] == [30.0, 30.0]
    assert rows["busy", "default"]["frames_per_second"] == [10.0, 10.0]
    assert rows["busy", "default"]["over_best_fixed"] == 0.75 and rows["busy", "default"]["threads"] == [2, 2]
    assert "2 2" in capsys.readouterr().out

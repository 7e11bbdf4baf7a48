"""The company benchmark on an untrained model, and its numbers for known differences."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import company
from company import difference, main

NO_DIFFERENCE = 10 * np.log10(255**2 * 12)
"""PSNR of equal videos in dB."""


def test_runs_and_writes(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny = ["--codecs", "int2", "--others", "1", "--videos", "2", "--frames", "16", "--rounds", "1", "--streams", "2"]
    main([*tiny, "--threads", "1", "--weights", str(weights), "--out", str(tmp_path / "x.json")])
    results = json.loads((tmp_path / "x.json").read_text())["results"]
    shared, own = results["rows"]
    assert (shared["reproducible"], own["reproducible"]) == (False, True)
    assert (own["same_videos"], own["max"], own["share_above_1"], own["psnr"]) == (2, 0, 0, NO_DIFFERENCE)
    (speed,) = results["speed"]
    assert (speed["streams"], len(speed["seconds_shared"])) == (2, 1) and speed["reproducible_over_shared"] > 0
    printed = capsys.readouterr().out
    assert "worst" in printed and "frames/s reproducible" in printed


def test_differences_are_counted_by_level() -> None:
    alone = {"a": np.zeros((2, 10, 10, 3), np.uint8), "b": np.full((2, 10, 10, 3), 200, np.uint8)}
    together = {id: video.copy() for id, video in alone.items()}
    together["b"][0, 0, 0] = (201, 190, 255)
    found = difference(alone, together)
    assert (found["same_videos"], found["max"], found["share_above_1"]) == (1, 55, 2 / 1200)
    assert found["worst_psnr"] == pytest.approx(10 * np.log10(255**2 / ((1 + 100 + 55**2) / 600)))
    assert found["psnr"] == pytest.approx(found["worst_psnr"] + 10 * np.log10(2))


def test_reproducible_videos_that_differ_are_an_error(monkeypatch: pytest.MonkeyPatch, weights: Path) -> None:
    workload = company.Workload(str(weights), 2, 8, 0)
    videos = iter([{"0": np.zeros(4, np.uint8)}, {"0": np.zeros(4, np.uint8)}, {"0": np.ones(4, np.uint8)}])
    monkeypatch.setattr(workload, "videos", lambda *_: next(videos))
    with pytest.raises(AssertionError, match="int2: reproducible videos differ"):
        company.compare(workload, ["int2"], [1])

"""The throughput benchmark on an untrained model, with one memory measurement in a process of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from throughput import main


def test_runs_and_writes(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny = ["--streams", "2", "--codecs", "int2", "--frames", "16", "--rounds", "2", "--threads", "1"]
    main([*tiny, "--weights", str(weights), "--out", str(tmp_path / "x.json")])
    (row,) = json.loads((tmp_path / "x.json").read_text())["results"]["rows"]
    assert (row["streams"], row["codec"], len(row["seconds"])) == (2, "int2", 2)
    assert row["speed_over_first_codec"] == 1
    assert 0 < row["own_share"] < 1
    memory = row["memory_bytes"]
    # 2 videos with one committed chunk each: 2 layers x 1 head x 1 page of K and of V.
    assert memory["pages"] == 2 * 2 * 2 * 36 * 64
    assert memory["reserved"] >= memory["pages"]
    assert memory["peak"] >= memory["baseline"] > 0
    assert "frames/s" in capsys.readouterr().out

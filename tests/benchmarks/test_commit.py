"""The benchmark of storing, on the CPU: a tiny run writes its file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from commit import main


def test_commit_writes_a_row_per_codec_and_correction(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = ["--device", "cpu", "--shapes", "tiny", "--codecs", "int2", "bf16", "--rounds", "2"]
    main([*settings, "--corrections", "measured", "--out", str(tmp_path / "x.json")])
    rows = json.loads((tmp_path / "x.json").read_text())["results"]["rows"]
    assert [(row["codec"], row["store"]) for row in rows] == [("int2", "torch"), ("bf16", "torch")]
    assert all(len(row["seconds"]) == 2 and row["over_denoising"] > 0 for row in rows)

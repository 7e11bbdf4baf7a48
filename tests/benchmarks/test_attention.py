"""The attention benchmark: both sides compute the same thing, and it runs on a tiny shape."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from attention import Inputs, PagedLayer, main

TINY = ["--heads", "2", "--head-dim", "32", "--tokens", "70", "--chunks", "2", "--rounds", "2"]


def test_paged_bf16_equals_the_dense_call() -> None:
    inputs = Inputs.draw(2, 32, 70, 2, seed=0)
    paged = PagedLayer(inputs, "bf16", 2**20).attend().float()
    dense = inputs.dense_call()()[0].transpose(0, 1).float()
    assert paged.shape == dense.shape == (70, 2, 32)
    assert (paged - dense).norm() < 0.02 * dense.norm()


def test_runs_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([*TINY, "--codecs", "int2", "bf16", "--out", str(tmp_path / "x.json")])
    dense, int2, bf16 = json.loads((tmp_path / "x.json").read_text())["results"]["rows"]
    assert (dense["case"], int2["case"], bf16["case"]) == ("dense bf16", "int2", "bf16")
    assert dense["ratio_to_dense"] == 1
    assert len(int2["seconds"]) == 2
    assert int2["extra_bytes"] > 2 * 2 * 2 * 70 * 32  # at least the decoded keys and values of a chunk
    assert "one chunk's K and V" in capsys.readouterr().out

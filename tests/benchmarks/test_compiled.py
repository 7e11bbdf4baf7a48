"""benchmarks/compiled.py at tiny size, without a compiler: both networks, two graphs each, the plain predictions."""

from __future__ import annotations

import json
from functools import partial

import pytest
import torch

import compiled


@pytest.fixture(autouse=True)
def no_graph_of_other_tests():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def test_the_table(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(compiled, "WIDTH", {"num_attention_heads": 1, "attention_head_dim": 32, "ffn_dim": 64})
    monkeypatch.setattr(compiled, "require_compiler", lambda device: None)
    monkeypatch.setattr(compiled, "compile_blocks", partial(compiled.compile_blocks, backend="eager"))
    out = tmp_path / "compiled.json"
    sizes = ["--blocks", "2", "--rows", "4", "--rounds", "1"]
    monkeypatch.setattr("sys.argv", ["compiled.py", *sizes, "--out", str(out)])
    compiled.main()
    assert "first s" in capsys.readouterr().out
    rows = json.loads(out.read_text())["results"]["rows"]
    assert [(row["network"], row["ranges"]) for row in rows] == [(n, r) for n in ("demo", "wan") for r in (1, 2, 4)]
    assert [row["graphs"] for row in rows] == [1, 1, 0] * 2
    assert all(row["error"] < 1e-5 and row["ratio"] > 0 for row in rows)

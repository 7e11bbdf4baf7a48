"""benchmarks/weights.py at tiny size: bytes are those of the arithmetic, and only rounding changes the output."""

from __future__ import annotations

import json

import pytest

import weights


def test_the_table(tmp_path, monkeypatch, capsys):
    width = {"num_attention_heads": 2, "attention_head_dim": 128, "ffn_dim": 512}
    monkeypatch.setattr(weights, "WIDTH", width)
    out = tmp_path / "weights.json"
    monkeypatch.setattr("sys.argv", ["weights.py", "--blocks", "3", "--rows", "4", "--rounds", "1", "--out", str(out)])
    weights.main()
    assert "fp8, offload" in capsys.readouterr().out
    rows = {row["form"]: row for row in json.loads(out.read_text())["results"]["rows"]}
    linear, outputs = 3 * (8 * 256**2 + 2 * 256 * 512), 3 * (9 * 256 + 512)
    assert rows["plain"]["device_bytes"] - rows["fp8"]["device_bytes"] == 3 * linear - 4 * outputs
    for plain, away in (("plain", "offload"), ("fp8", "fp8, offload")):
        assert rows[away]["error"] == rows[plain]["error"]
        assert rows[plain]["device_bytes"] - rows[away]["device_bytes"] == rows[away]["host_bytes"] / 3
    assert rows["plain"]["error"] == 0 < rows["fp8"]["error"] < 0.05
    assert rows["fp8, offload"]["host_bytes"] == pytest.approx(rows["offload"]["host_bytes"] / 4, rel=0.05)

"""`benchmarks/budget_cost.py` on a small layer: both storages take about as many bits, and every call is timed."""

from __future__ import annotations

import json

import pytest

from budget_cost import BY_HEAD, MIX, UNIFORM, Layer, main, mixed
from pagedvid.codecs.registry import LADDERS


def test_both_storages_are_measured(tmp_path, capsys):
    out = tmp_path / "cost.json"
    main(["--tokens", "180", "--chunks", "1", "--rounds", "2", "--threads", "1", "--out", str(out)])
    rows = json.loads(out.read_text())["results"]["rows"]
    assert [(row["operation"], row["case"]) for row in rows] == [
        (operation, case) for operation in ("store", "attend") for case in (UNIFORM, BY_HEAD)
    ]
    assert all(len(row["seconds"]) == 2 and row["ratio"] > 0 for row in rows)
    assert "by head" in capsys.readouterr().out


def test_the_mix_has_every_rung_and_as_many_bits():
    assert set(MIX) == set(LADDERS["klt"][1:])
    assert sum(float(name.removeprefix("klt")) for name in MIX) / len(MIX) == pytest.approx(2.25, abs=0.1)
    bits = Layer(mixed(), 4680, 1, seed=0).bits
    assert bits == pytest.approx(2.25, abs=0.1)

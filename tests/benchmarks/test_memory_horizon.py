"""The benchmark of what walks remember, on an untrained model: windows at equal bytes, tables that fit, its files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from horizon.trips import Revisits
from memory_horizon import CORRECTIONS, NAMES, Program, Row, columns, main, parse, table
from pagedvid.cache.window import Window
from pagedvid.models.demo.spec import TransformerConfig
from pagedvid.models.walk.network import Transformer
from pagedvid.models.walk.weights import save_weights


@pytest.fixture
def walk_weights(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_weights(Transformer(TransformerConfig(width=64, num_heads=1, num_layers=2)), tmp_path / "walk", {"steps": 0})
    return tmp_path / "walk"


def test_every_part_runs(walk_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "horizon.json"
    given = ["--trips", "1", "--frames-out", "8", "--bf16-chunks", "2", "3"]
    main([*given, "--weights", str(walk_weights), "--out", str(out)])
    results = json.loads(out.read_text())["results"]
    assert set(results["horizon"]) == {"2", "3"}
    for rows in results["horizon"].values():
        bf16, *others = rows
        assert [row["storage"] for row in rows] == ["bf16", "int4", "int2"]
        assert all(row["bytes"] <= bf16["bytes"] and row["recent_chunks"] > bf16["recent_chunks"] for row in others)
    assert {row["recent_chunks"] for row in results["bits"]} == {9}
    assert [row["correction"] for row in results["correction"][:4]] == ["off", "formula", "variance", "measured"]
    assert {(row["storage"], row["sink_chunks"]) for row in results["sinks"]} == {
        (storage, sinks) for storage in ("bf16", "int2") for sinks in (0, 1)
    }
    assert max(map(len, capsys.readouterr().out.replace(str(out), "").splitlines())) <= 80
    assert out.with_suffix(".png").stat().st_size > 5000
    assert out.with_name("memory_horizon_strips.png").stat().st_size > 1000


def test_the_longest_window_within_some_bytes(walk_weights: Path) -> None:
    program = Program(parse(["--weights", str(walk_weights), "--frames-out", "60", "--trips", "1"]))
    budget = program.bytes_of("bf16", Window(0, 4))
    for sinks in (0, 1):
        window = program.longest("int2", budget, sinks)
        longer = Window(sinks, window.recent_chunks + 1)
        assert program.bytes_of("int2", window) <= budget < program.bytes_of("int2", longer)
    assert program.longest("int2", 10**12, 0).max_chunks == program.num_chunks


def test_the_widest_table_fits() -> None:
    distances = list(range(4, 161, 4))
    perfect = Revisits(distances, [10] * 40, [10] * 40, [41.0] * 40, 41.7)
    rows = [Row("token2-g64", correction, 0, 81, 1, 4.5, perfect) for correction in CORRECTIONS]
    printed = table(rows, 80, NAMES["correction"])
    assert "token2-g64 variance" in printed and max(map(len, printed.splitlines())) <= 80


def test_columns_cover_all_distances() -> None:
    assert columns(60) == [(1, 8), (9, 16), (17, 32), (33, 64), (65, 120)]
    assert columns(120)[-1] == (129, 240)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--trips", "0"], "at least 1 trip"),
        (["--frames-out", "4"], "8 frames out"),
        (["--bf16-chunks", "1"], "least 2"),
    ],
)
def test_what_cannot_be_measured_is_refused(given: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(given)
    assert message in capsys.readouterr().err

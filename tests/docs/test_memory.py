"""The page on memory: its figures are those of the benchmark."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tests.docs.pages import DOCS, README, tables

RESULTS = DOCS.parent / "benchmarks" / "results"
FAR = {8: (1, 8), 16: (9, 16), 32: (17, 32), 64: (33, 64), 128: (65, 128), 160: (129, 160)}
HORIZON = json.loads((RESULTS / "memory_horizon.json").read_text())["results"]
SHORT = json.loads((RESULTS / "memory_horizon_correction.json").read_text())["results"]
BITS = json.loads((RESULTS / "memory_horizon_bits.json").read_text())["results"]


def percent(revisits: dict[str, Any], nearest: int, farthest: int) -> float:
    chosen = [i for i, distance in enumerate(revisits["distances"]) if nearest <= distance <= farthest]
    return 100 * sum(revisits["num_same"][i] for i in chosen) / sum(revisits["num_landmarks"][i] for i in chosen)


def storage_of(name: str) -> str:
    """`klt, preset `small`` and the like -> small."""
    preset = re.search(r"preset `(\w+)`", name)
    return preset.group(1) if preset else name


@pytest.mark.parametrize(("number", "size"), list(enumerate(HORIZON["horizon"])))
def test_what_is_remembered_in_the_same_memory(number: int, size: str) -> None:
    table, rows = tables(DOCS / "memory.md")[number], HORIZON["horizon"][size]
    assert len(table) == len(rows) == 6
    by_storage = {row["storage"]: row for row in rows}
    for name, shown in table.items():
        row = by_storage[storage_of(name)]
        assert int(shown["chunks"]) == row["recent_chunks"]
        for end, span in FAR.items():
            assert int(shown[f"to {end}"]) == round(percent(row["revisits"], *span)), (name, end)


def test_what_is_remembered_in_the_same_window() -> None:
    table = tables(DOCS / "memory.md")[2]
    assert len(table) == len(BITS["bits"]) == 9
    by_storage = {row["storage"]: row for row in BITS["bits"]}
    for name, shown in table.items():
        row = by_storage[storage_of(name)]
        assert float(shown["bits per value"]) == pytest.approx(row["bits"], abs=0.005)
        found = percent(row["revisits"], 1, 160)
        assert shown["landmarks there again, all distances"] == f"{found:.1f} %"
        assert shown["PSNR of the first view after 160 frames"] == f"{row['revisits']['psnr'][-1]:.1f} dB"


def test_what_the_correction_is_worth() -> None:
    table = tables(DOCS / "memory.md")[3]
    shown = {(storage, kind): cell for storage, row in table.items() for kind, cell in row.items()}
    assert len(shown) == len(SHORT["correction"]) == 8
    for row in SHORT["correction"]:
        assert shown[row["storage"], row["correction"]] == f"{percent(row['revisits'], 1, 80):.1f} %"


def test_what_sinks_are_worth() -> None:
    table = tables(DOCS / "memory.md")[4]
    assert len(table) == len(SHORT["sinks"]) == 6
    for row in SHORT["sinks"]:
        for end, nearest in ((8, 1), (16, 9), (32, 17), (64, 33), (80, 65)):
            shown = table[f"{row['storage']}, {row['sink_chunks']} sinks"][f"to {end}"]
            assert int(shown) == round(percent(row["revisits"], nearest, end)), (row["storage"], end)


def test_the_reach_that_the_readme_quotes_is_in_the_table() -> None:
    text = " ".join(README.read_text().split())
    (bf16, default) = re.findall(r'a bf16 history remembers (\d+) frames, the default \("balanced"\) (\d+)', text)[0]
    table = tables(DOCS / "memory.md")[0]
    assert table["bf16"]["reach"] == f"{bf16} frames"
    assert next(row["reach"] for name, row in table.items() if "balanced" in name).strip("*") == default

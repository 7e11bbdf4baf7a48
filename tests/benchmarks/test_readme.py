"""benchmarks/README.md lists every program and every result."""

from __future__ import annotations

import re
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
NAMES = set(re.findall(r"`(?:results/)?([\w.]+\.\w+)", (BENCHMARKS / "README.md").read_text()))


def test_every_program_is_listed() -> None:
    programs = {path.name for path in BENCHMARKS.glob("*.py")}
    assert programs - NAMES == {"attention_streams.py"}  # attention.py --device cuda
    assert {name for name in NAMES if name.endswith(".py")} <= programs


def test_every_result_is_listed() -> None:
    of_memory = {"memory_horizon.png", "memory_horizon_strips.png"}
    pictures = {"budgets.png", "demo_sheet.png", "fidelity.png", *of_memory}  # each next to the file of its program
    assert {path.name for path in (BENCHMARKS / "results").iterdir()} - pictures <= NAMES

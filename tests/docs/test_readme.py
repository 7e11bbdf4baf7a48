"""The README: its code runs as it is written, its order is kept, and its figures are those of the pages behind it."""

from __future__ import annotations

import json
import re

import pytest

from tests.docs.pages import DOCS, README, code_blocks, tables

SECTIONS = (
    "Install and try",
    "Embed it in your engine",
    "Generate",
    "How many videos fit?",
    "Results",
    "How it works",
    "Limits",
    "Read on",
)


def test_embedding_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = code_blocks(README, "python")
    exec(compile(example, "README.md", "exec"), {"__name__": "readme"})
    assert "num_chunks=8" in capsys.readouterr().out


def test_embedding_takes_ten_lines() -> None:
    (example,) = code_blocks(README, "python")
    lines = [line for line in example.splitlines() if line.strip() and not line.startswith(("import", "from"))]
    assert len(lines) <= 10


def test_opens_with_the_two_commands() -> None:
    assert code_blocks(README, "bash")[:2] == ["bash tools/demo.sh\n", "bash .ci/run\n"]


def test_fits_on_a_few_screens() -> None:
    lines = README.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 180
    assert [line for line in lines if len(line) > 120] == []


def test_sections_in_the_order_in_which_a_newcomer_needs_them() -> None:
    assert tuple(re.findall(r"^## (.*)$", README.read_text(encoding="utf-8"), re.MULTILINE)) == SECTIONS


def test_results_are_those_of_the_page_on_fidelity() -> None:
    ours, *_ = (table for table in tables(README) if "int2 (default without tables)" in table)
    theirs, *_ = (table for table in tables(DOCS / "fidelity.md") if "int2 (default without tables)" in table)
    assert len(ours) == 11
    for cache, row in ours.items():
        assert row.items() <= theirs[cache].items(), cache


def test_capacity_is_that_of_the_table() -> None:
    (quoted,) = re.findall(r"Self-Forcing's BF16 cache allows (\d+) streams and its int2 cache (\d+)\.", _text(README))
    row = tables(DOCS / "capacity.md")[0]["self-forcing"]
    assert quoted == (row["bf16"], row["int2"])


def test_attention_time_is_what_was_measured() -> None:
    report = json.loads((README.parent / "benchmarks" / "results" / "attention.json").read_text())
    (int2,) = (row for row in report["results"]["rows"] if row["case"] == "int2")
    for page in (README, DOCS / "performance.md"):
        assert f"**{int2['ratio_to_dense']:.2f} times**" in _text(page)
        assert f"{int2['extra_bytes'] / 2**20:.1f} MiB" in _text(page)


def _text(page) -> str:
    """The page with its line breaks as spaces."""
    return " ".join(page.read_text(encoding="utf-8").split())

"""Tables, statistics and files of the benchmarks."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from lib.report import format_table, make_parser, name_after_device, to_json, write_report


def test_columns_are_aligned_and_never_wider_than_a_terminal() -> None:
    assert format_table(("a", "long"), [("1", "2"), ("333", "4")]) == "  a  long\n---------\n  1     2\n333     4"
    with pytest.raises(ValueError, match="at most 80"):
        format_table(("x" * 81,), [])


def test_file_says_what_ran_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "x.json"
    arguments = make_parser("x", "about x").parse_args(["--seed", "7", "--out", str(out)])
    write_report(arguments, "x", {"answer": 42})
    report = json.loads(out.read_text())
    assert report["benchmark"] == "x"
    assert report["results"] == {"answer": 42}
    assert report["settings"] == {"seed": 7, "threads": None}
    assert re.fullmatch(r"[0-9a-f]{40}(-modified)?|unknown", report["environment"]["git_revision"])
    assert report["environment"]["device"] and report["environment"]["torch"]
    assert str(out) in capsys.readouterr().out


@pytest.mark.parametrize(("out", "name"), [([], "x_cpu.json"), (["--out", "other.json"], "other.json")])
def test_file_is_named_after_the_device_unless_it_has_a_name(out: list[str], name: str) -> None:
    parser = make_parser("x", "about x")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args(out)
    assert name_after_device(arguments, "x") == "cpu"
    assert arguments.out.name == name


def test_json_keeps_its_values_and_is_short() -> None:
    report = {
        "a": [1.5, -3e-5] * 40, "b": [[1, 2], [3]], "c": [{"x": [1e20], "y": "[1, 2]"}], "e": [], "f": {}, "n": None,
        "s": ["nine", "ab" * 60],
    }  # fmt: skip
    written = to_json(report)
    assert json.loads(written) == report
    lines = written.splitlines()
    assert lines[0] == "{" and lines[1].startswith('  "a": [1.5, -3e-05, 1.5') and lines[2] == '  "b": [[1, 2], [3]],'
    assert lines[-5:-3] == ['  "s": [', '    "nine",'] and len(lines) == 12
    assert to_json([float("nan"), float("-inf")]) == "[NaN, -Infinity]"

"""The checks for a machine with a device, here with parts that are not those: one part's fault costs only itself."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import device_checks
from device_checks import ROOT, TOTAL_SECONDS, Command, Part, main, parts, python, run_all, summary

HANGS = python("-c", "import time; print('begun', flush=True); time.sleep(60)")
FAILS = python("-c", "print('wrong'); raise SystemExit(3)")
PASSES = python("-c", "import os; print('right', os.environ['NUMBER'])", NUMBER="7")


def test_one_part_costs_only_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = [Part("hangs", 1.5, (HANGS, PASSES)), Part("fails", 30, (FAILS, PASSES)), Part("passes", 30, (PASSES,))]
    started = time.monotonic()
    outcomes = run_all(plan, tmp_path / "results")
    assert time.monotonic() - started < 20
    assert [outcome.is_good for outcome in outcomes] == [False, False, True]
    assert [outcome.result for outcome in outcomes] == ["time limit (2 of 2)", "exit code 3 (1 of 2)", "passed"]
    assert (tmp_path / "results" / "summary.txt").read_text() == summary(outcomes) + "\n"
    assert "begun" in (tmp_path / "results" / "hangs.log").read_text()
    log = (tmp_path / "results" / "fails.log").read_text()
    assert "wrong" in log and "right 7" in log and "NUMBER=7" in log
    assert "right 7" in capsys.readouterr().out


def test_what_hangs_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    child = (
        "import subprocess, sys; print(subprocess.Popen(['sleep', '60']).pid, flush=True); import time; time.sleep(60)"
    )
    run_all([Part("hangs", 2, (python("-c", child),))], tmp_path)
    number = int((tmp_path / "hangs.log").read_text().splitlines()[-1])
    state = Path(f"/proc/{number}/stat")
    deadline = time.monotonic() + 10
    while state.exists() and state.read_text().split()[2] != "Z" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not state.exists() or state.read_text().split()[2] == "Z"


def test_parts_that_run_together_share_the_limit(tmp_path: Path) -> None:
    started = time.monotonic()
    (outcome,) = run_all([Part("parity", 2, (HANGS, PASSES, FAILS, HANGS), together=True)], tmp_path)
    assert time.monotonic() - started < 15
    assert outcome.result == "time limit (2 of 4), exit code 3 (1 of 4)"


def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    none = ("no-such-program-here",)
    plan = [Part("a", 9, (Command(none), PASSES)), Part("b", 9, (Command(none, may_be_missing=True), PASSES))]
    outcomes = run_all(plan, tmp_path)
    assert [outcome.result for outcome in outcomes] == ["not found (1 of 2)", "passed"]


def test_all_parts_together_are_within_the_time_and_the_files_that_can_be_taken_home(tmp_path: Path) -> None:
    plan = parts(tmp_path, 8, has_av=True)
    assert [part.name for part in plan] == ["facts", "parity", "attention", "commit", "demo"]
    assert sum(part.limit_seconds for part in plan) <= TOTAL_SECONDS
    words = [word for part in plan for command in part.commands for word in command.words]
    assert len(plan) + len({word for word in words if word.endswith(".json")}) + 1 <= 8  # logs, figures, the summary
    files = [word for word in words if word.endswith((".py", ".txt")) and not Path(word).is_absolute()]
    assert files and all((ROOT / word).is_file() for word in files)


def test_a_dry_run_needs_no_device(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "none"), "--dry-run"]) == 0
    assert "attention: at most" in capsys.readouterr().out and not (tmp_path / "none").exists()


def test_the_exit_code_and_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OUT", str(tmp_path / "out"))
    for command, code in ((PASSES, 0), (FAILS, 1)):
        monkeypatch.setattr(device_checks, "parts", lambda *_, command=command: [Part("one", 30, (command,))])
        assert main([]) == code
        assert (tmp_path / "out" / "one.log").is_file()


def test_shares_are_all_tests_once_and_say_what_failed(tmp_path: Path) -> None:
    tests = "import pytest\n@pytest.mark.parametrize('n', range(7))\ndef test_n(n):\n    assert n != 3, 'it is three'\n"
    (tmp_path / "test_numbers.py").write_text(tests)
    lines = []
    for number in range(3):
        variables = {**os.environ, "SHARD": f"{number}/3", "PYTHONPATH": str(ROOT / "tools")}
        words = [sys.executable, *device_checks.PYTEST, "-p", "shard", "-p", "no:terminal", "test_numbers.py"]
        done = subprocess.run(words, cwd=tmp_path, env=variables, capture_output=True, text=True)
        assert done.returncode == (number == 0), done.stderr
        lines += done.stdout.splitlines()
    results = sorted(line.split("::")[1] for line in lines if "::" in line)
    assert results == [f"test_n[{n}]" for n in range(7)]
    assert sum(line.startswith("passed") for line in lines) == 6 and any("it is three" in line for line in lines)


def test_a_python_that_sees_a_device_is_used_as_it_is(tmp_path: Path) -> None:
    """Nothing is installed. This one says yes to any question, and otherwise shows what it is asked to run."""
    (tmp_path / "python3").write_text('#!/bin/sh\n[ "$1" = -c ] || echo "$@"\n')
    (tmp_path / "python3").chmod(0o755)
    variables = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", str(ROOT / "tools" / "gpu.sh"), "some folder"], env=variables, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "tools/device_checks.py some folder\n", "")

"""tools/test_engines.sh: how it makes its environment, and what it gives to pytest, with a stand-in for Python."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STAND_IN = """#!/usr/bin/env bash
echo "$*" >>"$CALLS"
case "$1 $2" in
"-c "*) exit "$NO_VENV" ;;
"-m venv") mkdir -p "$4/bin" && touch "$4/pyvenv.cfg" && cp "$0" "$4/bin/python" ;;
"-m pip") exit "$PIP_RESULT" ;;
"-m pytest") case "$*" in *tests/engines/sglang*) exit "$SGLANG_RESULT" ;; *) exit "$OTHERS_RESULT" ;; esac ;;
esac
"""


class Script:
    """Runs the script in an environment folder of its own; `calls` are those of Python since the last run."""

    def __init__(self, folder: Path) -> None:
        self.venv, self.python, self._log = folder / "venv", folder / "python", folder / "calls"
        self.python.write_text(STAND_IN)
        self.python.chmod(0o755)
        self.calls: list[str] = []

    def run(self, *arguments: str, **results: int) -> subprocess.CompletedProcess[str]:
        self._log.write_text("")
        own = {"PYTHON": self.python, "PAGEDVID_ENGINES_VENV": self.venv, "CALLS": self._log}
        results = {"NO_VENV": 0, "PIP_RESULT": 0, "SGLANG_RESULT": 0, "OTHERS_RESULT": 0, **results}
        environment = {**os.environ, **{name: str(value) for name, value in {**own, **results}.items()}}
        done = subprocess.run(
            ["bash", ROOT / "tools" / "test_engines.sh", *arguments], env=environment, capture_output=True, text=True
        )
        self.calls = self._log.read_text().splitlines()
        return done

    def installs(self) -> list[str]:
        return [call for call in self.calls if call.startswith("-m pip install")]


@pytest.fixture
def script(tmp_path) -> Script:
    return Script(tmp_path)


def test_the_environment_is_made_once(script):
    assert script.run().returncode == 0
    assert len(script.installs()) == 2
    assert script.run().returncode == 0
    assert not script.installs()


def test_torch_comes_from_the_index_of_its_cpu_builds(script):
    script.run()
    first, second = script.installs()
    assert "--extra-index-url https://download.pytorch.org/whl/cpu torch==" in first
    assert "constraints-engines.txt" in second and "pytorch.org" not in second


def test_an_installation_that_broke_off_is_begun_anew(script):
    broken = script.run(PIP_RESULT=1)
    assert broken.returncode == 1 and "installation failed; the whole log is in" in broken.stderr
    assert not any(call.startswith("-m pytest") for call in script.calls)
    assert script.run().returncode == 0
    assert len(script.installs()) == 2


def test_without_the_venv_module_the_package_is_named(script):
    done = script.run(NO_VENV=1)
    assert done.returncode == 1 and "apt-get install python3 python3-venv" in done.stderr
    assert not script.venv.exists()


def test_a_folder_that_is_no_environment_is_not_emptied(script):
    script.venv.mkdir()
    (script.venv / "thesis.txt").write_text("all of it")
    done = script.run()
    assert done.returncode == 1 and "is not an environment" in done.stderr
    assert (script.venv / "thesis.txt").exists() and not script.calls


def test_arguments_go_to_pytest_and_may_choose_tests_of_one_engine(script):
    assert script.run("-k", "two words", SGLANG_RESULT=5).returncode == 0
    runs = [call for call in script.calls if call.startswith("-m pytest")]
    assert len(runs) == 2 and all(call.endswith("-k two words") for call in runs)
    assert script.run("-k", "plugin", SGLANG_RESULT=1).returncode == 1
    assert script.run("-k", "nothing", SGLANG_RESULT=5, OTHERS_RESULT=5).returncode == 5


def test_an_engine_without_tests_fails(script):
    assert script.run(SGLANG_RESULT=5).returncode == 1

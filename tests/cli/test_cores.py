"""How PyTorch's threads wait: decided from what the cores are doing, before PyTorch loads."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pagedvid.cli import cores

STAT = "cpu  0 0 0 0\ncpu0 {0} 0 10 {1} 5 0 0 2 0 0\ncpu1 20 0 0 100 0 0 0 0 0 0\ncpu7 900 0 0 0 0 0 0 0 0 0\nintr 3\n"
PROBE = """
import os, sys
from pagedvid.cli import cores, generate
from pagedvid.config.sections import Config
cores.cores_used_by_others = lambda seconds: {others}
generate.resolved(Config())
print(os.environ.get("OMP_WAIT_POLICY"), "torch" in sys.modules)
"""


def chosen(others: float, **environment: str) -> str:
    """The policy that a command leaves in the environment by the time it has loaded PyTorch."""
    unset = {name: value for name, value in os.environ.items() if name not in cores.CHOSEN_BY_USER}
    command = [sys.executable, "-c", PROBE.format(others=others)]
    done = subprocess.run(command, env={**unset, **environment}, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_threads_sleep_where_others_use_the_cores() -> None:
    assert chosen(1.9) == "PASSIVE True"


def test_threads_spin_on_idle_cores() -> None:
    assert chosen(0.1) == "None True"


@pytest.mark.parametrize("name", cores.CHOSEN_BY_USER)
def test_what_the_user_has_set_stays(name: str) -> None:
    value = "ACTIVE" if name == "OMP_WAIT_POLICY" else "serial" if name == "KMP_LIBRARY" else "100"
    assert chosen(1.9, **{name: value}) == f"{'ACTIVE' if name == 'OMP_WAIT_POLICY' else None} True"


def test_threads_of_a_service_sleep_on_idle_cores_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its other threads want them at any moment."""
    monkeypatch.delitem(sys.modules, "torch")
    for before, after in (({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")):
        monkeypatch.setattr(os, "environ", dict(before))
        cores.let_threads_sleep()
        assert os.environ["OMP_WAIT_POLICY"] == after


def test_nothing_is_set_once_pytorch_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "cores_used_by_others", lambda seconds: pytest.fail("nobody asks any more"))
    cores.choose_wait_policy()


def test_only_others_on_usable_cores_count(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Core 0 goes from 12 busy ticks to 32; steal counts as busy, waiting for a disk as idle; core 7 is not ours."""
    monkeypatch.setattr(cores, "_STAT", tmp_path / "stat")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1})
    monkeypatch.setattr(os, "sysconf", lambda name: 100)
    (tmp_path / "stat").write_text(STAT.format(0, 50))

    def sleep(seconds: float) -> None:
        (tmp_path / "stat").write_text(STAT.format(20, 50))

    clock = iter([0.0, 0.1])
    own = iter([3.0, 3.05])
    monkeypatch.setattr(cores.time, "sleep", sleep)
    monkeypatch.setattr(cores.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(cores.time, "process_time", lambda: next(own))
    assert cores.cores_used_by_others(0.1) == pytest.approx((0.2 - 0.05) / 0.1)


@pytest.mark.parametrize("content", [None, "", "cpu0 1 x\n", "cpu5 1 1 1 1 1 1 1 1\n"])
def test_where_nothing_is_known_no_core_is_busy(
    content: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(cores, "_STAT", tmp_path / "stat")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0})
    if content is not None:
        (tmp_path / "stat").write_text(content)
    assert cores.cores_used_by_others(0.0) == 0.0

"""`generate.threads: auto` takes what makes the first steps faster, once, and says so."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from pagedvid.cli import threads
from pagedvid.cli.progress import LineView
from pagedvid.cli.threads import ThreadChoice
from pagedvid.cli.video_run import VideoRun
from pagedvid.config.sections import Config, EngineConfig, GenerateConfig, ModelConfig
from pagedvid.engine.requests import VideoRequest
from pagedvid.output.folder import OutputFolder
from tests.cli.fake_engine import FakeEngine


class Machine:
    """Steps take as long as it is told, by the number of threads; the first takes ten times as long."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: dict[int, float]) -> None:
        self.seconds = seconds
        self.threads: int | None = None
        self.used: list[int | None] = []
        self._now = 0.0
        monkeypatch.setattr(threads.time, "perf_counter", lambda: self._now)

    def set_threads(self, number: int) -> None:
        self.threads = number

    def step(self) -> int:
        self._now += self.seconds[self.threads or 4] * (1 if self.used else 10)
        self.used.append(self.threads)
        return len(self.used)


def run(machine: Machine, num_steps: int = 8, **options: bool) -> ThreadChoice:
    choice = ThreadChoice(4, machine.set_threads, **options)
    assert [choice.run(machine.step) for _ in range(num_steps)] == list(range(1, num_steps + 1))
    return choice


def test_one_thread_where_all_are_slower(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    machine = Machine(monkeypatch, {1: 0.1, 4: 0.3})
    with caplog.at_level(logging.INFO, logger="pagedvid"):
        assert run(machine).num_threads == 1
    assert machine.used == [4, 1, 1, 4, 4, 1, 1, 1]
    assert caplog.messages == ["threads: 1 (a step takes 0.100 s with one, 0.300 s with 4)"]


def test_all_threads_where_they_are_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, {1: 0.3, 4: 0.2})
    assert run(machine).num_threads == 4
    assert machine.used == [4, 1, 1, 4, 4, 4, 4, 4]


def test_one_slow_step_with_one_thread_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, {1: 2.2, 4: 0.1})
    run(machine)
    assert machine.used == [4, 1, 4, 4, 4, 4, 4, 4]


def test_long_steps_are_not_tried_with_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, {1: 60.0, 4: 6.0})
    run(machine)
    assert machine.used == [4, *[4] * 7]


def test_nothing_is_timed_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, {1: 0.1, 4: 0.3})
    run(machine, is_timed=False)
    assert machine.used == [None] * 8


def test_a_step_that_fails_leaves_all_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, {1: 0.1, 4: 0.3})
    choice = ThreadChoice(4, machine.set_threads)
    choice.run(machine.step)
    with pytest.raises(ZeroDivisionError):
        choice.run(lambda: 1 // 0)
    assert machine.threads == 4


@pytest.mark.parametrize(
    ("config", "is_timed"),
    [
        (Config(), True),
        (Config(engine=EngineConfig(reproducible=True)), False),
        (Config(model=ModelConfig(device="cuda")), False),
        (Config(generate=GenerateConfig(threads=3)), False),
    ],
)
def test_settings(config: Config, is_timed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    set_to: list[int] = []
    monkeypatch.setattr("torch.set_num_threads", set_to.append)
    monkeypatch.setattr("torch.get_num_threads", lambda: set_to[-1] if set_to else 2)
    choice = ThreadChoice.of(config)
    assert set_to == ([3] if config.generate.threads == 3 else [])
    choice.run(lambda: None)
    assert (len(set_to) > 1) == is_timed


def test_a_run_records_its_threads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine = Machine(monkeypatch, {1: 0.1, 4: 0.3})
    engine = FakeEngine()
    take_step = engine.step
    monkeypatch.setattr(engine, "step", lambda: (machine.step(), take_step())[1])
    choice = ThreadChoice(4, machine.set_threads)
    with OutputFolder(tmp_path / "out", {}) as folder:
        VideoRun(lambda: engine, folder, [VideoRequest("a", "red", 40)], LineView(), 8.0, 1, {}, threads=choice).run()
    assert json.loads((tmp_path / "out" / "a.json").read_text())["threads"] == 1

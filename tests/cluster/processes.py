"""The processes of a Ray that a test has started in a session of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
WAIT_SECONDS = 120


@dataclass(frozen=True)
class Head:
    """A Ray that runs."""

    address: str
    session: int

    def workers(self) -> list[int]:
        """Process ids of its `WorkerActor`s."""
        return actors_of(self.session)


@contextmanager
def ray_head(num_cpus: int = 2) -> Iterator[Head]:
    """A Ray with so many cores."""
    with subprocess.Popen(
        [sys.executable, Path(__file__).with_name("ray_head.py"), str(num_cpus)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=_environment(),
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        yield Head(process.stdout.readline().strip(), process.pid)
        process.stdin.close()


@contextmanager
def joining(head: Head) -> Iterator[int]:
    """Another machine of that Ray, with one core, as far as Ray is concerned; gives the session of its processes."""
    flags = ["--address", head.address, "--num-cpus", "1", "--object-store-memory", str(100 * 2**20), "--block"]
    with subprocess.Popen(
        [sys.executable, "-m", "ray.scripts.scripts", "start", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=_environment(),
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        assert any("Ray runtime started" in line for line in process.stdout)
        yield process.pid
        kill_all(process.pid)


def _environment() -> dict[str, str]:
    places = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": places, "OMP_NUM_THREADS": "1"}


def actors_of(session: int) -> list[int]:
    """Process ids of all `WorkerActor`s in a session."""
    return [process for process, command in _processes_of(session) if command.startswith(b"ray::WorkerActor")]


def kill_all(session: int) -> None:
    """Ends every process of a session at once, as when its machine loses power."""
    for process, _ in _processes_of(session):
        os.kill(process, signal.SIGKILL)


def _processes_of(session: int) -> list[tuple[int, bytes]]:
    """(Process id, command) of those that run."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                if os.getsid(int(folder.name)) == session:
                    found.append((int(folder.name), (folder / "cmdline").read_bytes()))
            except OSError:  # it has ended
                continue
    return found


def wait_until(condition: Callable[[], object]) -> None:
    """Fails when nothing happens for two minutes."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.05)

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
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=_environment(),
        start_new_session=True,
    ) as process:
        yield process.pid
        os.killpg(process.pid, signal.SIGKILL)


def _environment() -> dict[str, str]:
    places = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": places, "OMP_NUM_THREADS": "1"}


def actors_of(session: int) -> list[int]:
    """Process ids of all `WorkerActor`s in a session."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                name, is_here = (folder / "cmdline").read_bytes(), os.getsid(int(folder.name)) == session
            except OSError:  # it has ended
                continue
            if is_here and name.startswith(b"ray::WorkerActor"):
                found.append(int(folder.name))
    return found


def wait_until(condition: Callable[[], object]) -> None:
    """Fails when nothing happens for two minutes."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.05)

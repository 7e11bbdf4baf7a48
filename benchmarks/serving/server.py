"""A `pagedvid serve` on a free port of this machine: a process of its own, which can be killed like any other."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

ADDRESS = re.compile(r"is served at (http://[\w.:\[\]]+);")
START_SECONDS, STOP_SECONDS = 120.0, 60.0


class Server:
    """Starts as a `with` block begins and is killed when it ends, unless it was stopped before."""

    def __init__(self, data: Path, settings: Mapping[str, object], num_threads: int | None = None) -> None:
        """`data`: the folder of its videos; what it prints goes to a file beside it, starts one after another.

        `settings`: by "section.key". `num_threads`: of the model; None: PyTorch's choice.
        """
        self.data = data
        self.log = data.with_name(f"{data.name}.log")
        words = ["serve", "--data", str(data), "--port", "0"]
        for name, value in {"generate.threads": num_threads or "auto", **settings}.items():
            words += ["--set", f"{name}={value}"]
        self._command = [sys.executable, "-m", "pagedvid", *words]
        self._process: subprocess.Popen[bytes] | None = None
        self.address = ""

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.kill()

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._running().pid

    def start(self) -> None:
        """Starts it and waits until it is ready. Raises RuntimeError with what it printed if it is not."""
        with self.log.open("ab") as log:
            start = log.tell()
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        deadline = time.monotonic() + START_SECONDS
        while not (found := ADDRESS.search(printed := self._printed(start))):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"`pagedvid serve` is not ready after {START_SECONDS:g} s or has ended: {printed}")
            time.sleep(0.05)
        self.address = found[1]

    def kill(self) -> None:
        """Ends it as the kernel does when memory runs out: it is not asked and cannot tidy up."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def stop(self) -> int:
        """Asks it to end; its exit code. Raises subprocess.TimeoutExpired if it does not."""
        process = self._running()
        process.send_signal(signal.SIGTERM)
        code = process.wait(STOP_SECONDS)
        self._process = None
        return code

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError("the server does not run")
        return self._process

    def _printed(self, start: int) -> str:
        with self.log.open("rb") as log:
            log.seek(start)
            return log.read().decode(errors="replace")

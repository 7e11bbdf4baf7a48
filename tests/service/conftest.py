"""A server as users start it, for tests that talk to it from outside."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

START_SECONDS = 60
STOP_SECONDS = 30


@pytest.fixture(scope="session")
def server_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a `pagedvid serve` with the demo model, or of the one that PAGEDVID_SERVER_URL names."""
    running = os.environ.get("PAGEDVID_SERVER_URL")
    if running:
        yield running.rstrip("/")
        return
    with served(tmp_path_factory.mktemp("serve")) as url:
        yield url


@contextmanager
def served(folder: Path, *options: str) -> Iterator[str]:
    """Address of a `pagedvid serve` with these options, whose data and log are in a folder."""
    pytest.importorskip("pagedvid.cli.serve", reason="needs the command `pagedvid serve`")
    port = _free_port()
    command = [sys.executable, "-m", "pagedvid", "serve", "--data", str(folder / "data"), "--port", str(port), *options]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_until_ready(url, server, folder / "log")
            yield url
        finally:
            server.terminate()
            server.wait(STOP_SECONDS)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_ready(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        assert server.poll() is None, f"the server ended with {server.returncode}: {log.read_text()}"
        try:
            with urllib.request.urlopen(f"{url}/readyz", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    pytest.fail(f"the server was not ready within {START_SECONDS} s: {log.read_text()}")

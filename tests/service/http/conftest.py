"""What the tests of the HTTP layer share: an app over fake sessions, in process or behind a real server."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from pagedvid.config.serving import ServeConfig
from pagedvid.service.http.app import create_app
from pagedvid.service.http.server import Server, listen
from pagedvid.service.http.settings import ServedModel, ServeSettings
from tests.service.http.fake_sessions import RATE, SIZE, FakeSessions

MODEL = ServedModel(
    "demo",
    RATE,
    width=SIZE,
    height=SIZE,
    default_num_frames=48,
    takes_frames=True,
    actions=("left", "up-left"),
    example_prompt="a red circle",
)
KEY = "0123456789abcdef-key"


def settings(api_key: str | None = None, model: ServedModel = MODEL, **limits: object) -> ServeSettings:
    """Settings of an app; `limits` as in the section `serve`."""
    return ServeSettings(model, ServeConfig(**limits), api_key)  # type: ignore[arg-type]


@pytest.fixture
def sessions(tmp_path: Path) -> FakeSessions:
    return FakeSessions(tmp_path)


@pytest.fixture
def make_client(sessions: FakeSessions) -> Iterator[Callable[..., TestClient]]:
    """Clients of an app in this process, by its settings."""
    clients: list[TestClient] = []

    def make(**how: object) -> TestClient:
        app = create_app(sessions, settings(**how))
        client = TestClient(app, base_url="http://localhost:8000", raise_server_exceptions=False)
        clients.append(client.__enter__())
        return client

    yield make
    for client in clients:
        client.__exit__(None, None, None)


@pytest.fixture
def client(make_client: Callable[..., TestClient]) -> TestClient:
    return make_client()


@contextmanager
def served(sessions: FakeSessions, **how: object) -> Iterator[tuple[str, int]]:
    """A real server on loopback, in a thread: its host and port."""
    given = settings(**how)
    with listen("127.0.0.1", 0) as listener:
        ready = threading.Event()
        server = Server(create_app(sessions, given), given.limits, 5.0, ready.set)
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        assert ready.wait(10)
        try:
            yield listener.getsockname()[:2]
        finally:
            server.should_exit = True
            thread.join(10)
            assert not thread.is_alive()


def eventually(holds: Callable[[], bool], seconds: float = 5.0) -> None:
    """Waits until something holds."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)

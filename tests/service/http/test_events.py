"""Server-sent events of one session and of all."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

from pagedvid.service.http import feed
from tests.service.http.conftest import eventually, served
from tests.service.http.fake_sessions import FakeSessions, NewSession

Event = tuple[str, dict, str | None]


@contextmanager
def followed(address: tuple[str, int], path: str, **headers: str) -> Iterator[Iterator[Event]]:
    """The events of a path as a browser would read them: (name, data, id); comments are ("comment", {}, None)."""
    host, port = address
    with httpx.stream("GET", f"http://{host}:{port}{path}", headers=headers, timeout=10) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        yield _events(response.iter_lines())


def _events(lines: Iterator[str]) -> Iterator[Event]:
    fields: dict[str, str] = {}
    for line in lines:
        if line.startswith(":"):
            yield "comment", {}, None
        elif line:
            name, _, value = line.partition(": ")
            fields[name] = value
        elif fields:
            yield fields["event"], json.loads(fields["data"]), fields.get("id")
            fields = {}


@pytest.fixture
def id(sessions: FakeSessions) -> str:
    return sessions.create(NewSession("a red circle", 8, kind="session", live_frames_per_second=12)).id


def test_everything_that_happens(sessions, id):
    with served(sessions) as address, followed(address, f"/v1/sessions/{id}/events") as events:
        assert next(events) == ("state", {"id": id, "state": "queued", "frames_done": 0}, None)
        sessions.chunk(id)
        assert next(events) == ("state", {"id": id, "state": "in_progress"}, None)
        chunk = {"id": id, "chunk_index": 0, "first_frame": 0, "num_frames": 4, "frames_done": 4}
        assert next(events) == ("chunk", chunk, "0")
        sessions.credit(id, -0.5)
        assert next(events) == ("credit", {"id": id, "credit_seconds": -0.5}, None)
        sessions.fail(id)
        assert next(events)[:2] == ("failed", {"id": id, "error": {"code": "ModelError", "message": "the model broke"}})
        sessions.delete(id)
        assert [event[1]["state"] for event in events] == ["cancelled"]  # and the stream ends


def test_who_comes_back_misses_no_chunk(sessions, id):
    sessions.finish(id)
    with (
        served(sessions) as address,
        followed(address, f"/v1/sessions/{id}/events", **{"Last-Event-ID": "0"}) as events,
    ):
        assert next(events)[1] == {"id": id, "state": "completed", "frames_done": 8}
        name, data, number = next(events)
        assert (name, data["chunk_index"], data["frames_done"], number) == ("chunk", 1, 8, "1")


@pytest.mark.parametrize("last", ["", "x", "-1", "9" * 4000, "1;2", "²"])
def test_strange_last_ids_do_no_harm(sessions, id, last):
    headers = {"Last-Event-ID": last} if last.isascii() else {}
    with served(sessions) as address, followed(address, f"/v1/sessions/{id}/events", **headers) as events:
        assert next(events)[0] == "state"


def test_silence_is_broken_by_comments(sessions, id):
    with served(sessions, heartbeat_seconds=0.1) as address, followed(address, f"/v1/sessions/{id}/events") as events:
        assert [next(events)[0] for _ in range(3)] == ["state", "comment", "comment"]


def test_all_sessions(sessions, id):
    other = sessions.create(NewSession("blue", 8, kind="video")).id
    with served(sessions) as address, followed(address, "/v1/events") as events:
        assert {next(events)[1]["id"], next(events)[1]["id"]} == {id, other}
        sessions.chunk(other)
        assert [next(events)[0] for _ in range(2)] == ["state", "chunk"]
        new = sessions.create(NewSession("green", 8)).id
        assert next(events)[1] == {"id": new, "state": "queued"}


def test_a_slow_client_loses_events_but_no_chunk(sessions, id, monkeypatch):
    monkeypatch.setattr(feed, "MAX_EVENTS", 3)
    with (
        served(sessions) as address,
        followed(address, f"/v1/sessions/{id}/events", **{"Last-Event-ID": "0"}) as events,
    ):
        next(events)
        sessions.chunk(id)
        for number in range(50):
            sessions.credit(id, number)
        sessions.chunk(id)
        found = []
        while not found or found[-1] != 1:
            name, data, _ = next(events)
            found += [data["chunk_index"]] if name == "chunk" else []
        assert found == [1]


def test_clients_that_go_away_are_forgotten(sessions, id):
    with served(sessions) as address:
        with followed(address, f"/v1/sessions/{id}/events") as events:
            next(events)
            assert sessions.num_listeners == 2
        eventually(lambda: sessions.num_listeners == 1)
        assert not any(call[0] == "came" for call in sessions.calls)  # who reads events watches nothing


def test_unknown_sessions(client):
    assert client.get("/v1/sessions/session_0123456789abcdef/events").status_code == 404

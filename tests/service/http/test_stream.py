"""stream.mp4: players read the video while it grows."""

from __future__ import annotations

import io
import threading

import av
import httpx
import pytest

from tests.service.http.conftest import eventually, served
from tests.service.http.fake_sessions import FakeSessions, NewSession


def num_frames(content: bytes) -> int:
    with av.open(io.BytesIO(content)) as container:
        return sum(1 for _ in container.decode(video=0))


@pytest.fixture
def id(sessions: FakeSessions) -> str:
    return sessions.create(NewSession("a red circle", 12, kind="session", live_frames_per_second=12)).id


def test_every_chunk_can_be_watched_at_once(sessions, id):
    with (
        served(sessions) as (host, port),
        httpx.stream("GET", f"http://{host}:{port}/v1/sessions/{id}/stream.mp4") as r,
    ):
        assert (r.status_code, r.headers["content-type"]) == (200, "video/mp4")
        parts, content = r.iter_bytes(), b""
        for chunk in range(3):
            sessions.chunk(id)
            end = sessions.recording(id).end
            while len(content) < end:
                content += next(parts)
            assert num_frames(content) == 4 * (chunk + 1)
        assert list(parts) == []  # it ends with the session
    assert content == sessions.recording(id).path.read_bytes()


def test_pyav_reads_the_address_while_it_grows(sessions, id):
    sessions.chunk(id)
    threading.Timer(0.3, sessions.finish, [id]).start()
    with served(sessions) as (host, port):
        url = f"http://{host}:{port}/v1/sessions/{id}/stream.mp4"
        with av.open(url, options={"seekable": "0"}) as container:
            times = [frame.pts * frame.time_base for frame in container.decode(video=0)]
    assert [round(time * 12) for time in times] == list(range(12))


def test_a_finished_session_is_sent_whole(client, sessions, id):
    sessions.finish(id)
    assert num_frames(client.get(f"/v1/sessions/{id}/stream.mp4").content) == 12


def test_a_failed_session_ends_after_what_it_has(client, sessions, id):
    sessions.chunk(id)
    sessions.fail(id)
    assert num_frames(client.get(f"/v1/sessions/{id}/stream.mp4").content) == 4


def test_a_viewer_comes_and_goes(sessions, id):
    sessions.chunk(id)
    with served(sessions) as (host, port):
        with httpx.stream("GET", f"http://{host}:{port}/v1/sessions/{id}/stream.mp4") as response:
            next(response.iter_bytes())
            assert ("came", id) in sessions.calls and ("left", id) not in sessions.calls
        eventually(lambda: ("left", id) in sessions.calls)
        eventually(lambda: sessions.num_listeners == 1)  # the metrics


def test_a_deleted_session_ends_the_stream(sessions, id):
    sessions.chunk(id)
    with (
        served(sessions) as (host, port),
        httpx.stream("GET", f"http://{host}:{port}/v1/sessions/{id}/stream.mp4") as r,
    ):
        parts = r.iter_bytes()
        next(parts)
        sessions.delete(id)
        list(parts)


def test_a_server_that_stops_ends_streams(sessions, id):
    sessions.chunk(id)
    with served(sessions) as (host, port):
        response = httpx.Client().stream("GET", f"http://{host}:{port}/v1/sessions/{id}/stream.mp4")
        parts = response.__enter__().iter_bytes()
        next(parts)
    list(parts)  # `served` has checked that the server stopped in time
    response.__exit__(None, None, None)


def test_unknown_sessions(client):
    assert client.get("/v1/sessions/session_0123456789abcdef/stream.mp4").status_code == 404

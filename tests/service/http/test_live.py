"""The WebSocket of a session."""

from __future__ import annotations

import io
import json

import av
import numpy as np
import pytest
from PIL import Image
from starlette.testclient import WebSocketDenialResponse
from starlette.websockets import WebSocketDisconnect

from tests.service.http.conftest import KEY, eventually
from tests.service.http.fake_sessions import FakeSessions, NewSession


@pytest.fixture
def id(sessions: FakeSessions) -> str:
    return sessions.create(NewSession("a red circle", 8, kind="session", live_frames_per_second=12)).id


def connect(client, id, query=""):
    return client.websocket_connect(f"ws://localhost:8000/v1/sessions/{id}/live{query}")


def until(socket, kind):
    """The next text message of a kind."""
    while True:
        received = socket.receive()
        if "text" in received and (message := json.loads(received["text"]))["type"] == kind:
            return message
        assert received["type"] == "websocket.send", received


class TestOut:
    def test_pictures(self, client, sessions, id):
        sessions.chunk(id)
        with connect(client, id) as socket:
            first = socket.receive_json()
            assert (first["type"], first["id"], first["frames_done"]) == ("session", id, 4)
            for chunk in range(2):
                assert until(socket, "chunk")["chunk_index"] == chunk
                for frame in range(4 * chunk, 4 * chunk + 4):
                    picture = np.asarray(Image.open(io.BytesIO(socket.receive_bytes())).convert("L"))
                    assert abs(picture.mean() - (20 + 4 * frame)) < 3
                if chunk == 0:
                    sessions.chunk(id)
            assert until(socket, "state")["state"] == "completed"

    def test_fragments(self, client, sessions, id):
        sessions.chunk(id)
        with connect(client, id, "?format=mp4") as socket:
            until(socket, "chunk")
            content = socket.receive_bytes() + socket.receive_bytes()
            sessions.chunk(id)
            until(socket, "chunk")
            content += socket.receive_bytes()
        assert content == sessions.recording(id).path.read_bytes()
        with av.open(io.BytesIO(content)) as container:
            assert sum(1 for _ in container.decode(video=0)) == 8

    def test_a_session_is_complete_when_its_last_frames_are_sent(self, client, sessions, id):
        with connect(client, id, "?format=mp4") as socket:
            until(socket, "session")
            sessions.finish(id)
            told = []
            while not told or told[-1] != "completed":
                received = socket.receive()
                if received.get("text"):
                    message = json.loads(received["text"])
                    told.append(message.get("state") or message["chunk_index"])
                else:
                    told.append(len(received["bytes"]))
        recording = sessions.recording(id)
        sizes = [chunk.end - chunk.start for chunk in recording.chunks]
        assert [it for it in told if it not in ("queued", "in_progress")] == [
            0, recording.init_bytes, sizes[0], 1, sizes[1], "completed"
        ]  # fmt: skip

    def test_who_comes_back_begins_where_it_was(self, client, sessions, id):
        sessions.finish(id)
        with connect(client, id, "?format=mp4&first_chunk=1") as socket:
            assert until(socket, "chunk")["first_frame"] == 4

    def test_events(self, client, sessions, id):
        with connect(client, id) as socket:
            until(socket, "session")
            sessions.credit(id, -1.5)
            assert until(socket, "credit")["credit_seconds"] == -1.5
            sessions.fail(id)
            assert until(socket, "failed")["error"]["code"] == "ModelError"

    def test_a_deleted_session_closes_it(self, client, sessions, id):
        with connect(client, id) as socket:
            until(socket, "session")
            sessions.delete(id)
            assert until(socket, "state")["state"] == "cancelled"
            with pytest.raises(WebSocketDisconnect) as closed:
                socket.receive_text()
            assert closed.value.code == 1000

    def test_the_viewer_counts(self, client, sessions, id):
        with connect(client, id) as socket:
            until(socket, "session")
            assert ("came", id) in sessions.calls
        eventually(lambda: ("left", id) in sessions.calls)


class TestIn:
    def test_verbs(self, client, sessions, id):
        with connect(client, id) as socket:
            until(socket, "session")
            for message, state in (({"type": "pause"}, "paused"), ({"type": "resume"}, "in_progress")):
                socket.send_json(message)
                assert until(socket, "state")["state"] == state
            socket.send_json({"type": "prompt", "prompt": "blue", "recache": True})
            socket.send_json({"type": "played", "num_frames": 3})
            eventually(lambda: ("played", id, 3) in sessions.calls)
            assert (sessions.get(id).prompt, ("prompt", id, True) in sessions.calls) == ("blue", True)
            socket.send_json({"type": "extend", "num_frames": 16})
            until(socket, "state")
            assert sessions.get(id).num_frames == 16

    @pytest.mark.parametrize(
        "message",
        [{"type": "prompt", "prompt": "unknown"}, {"type": "prompt", "prompt": " "},
         {"type": "prompt", "prompt": "a" * 5000}, {"type": "extend", "num_frames": 2401}],
    )  # fmt: skip
    def test_what_is_refused_ends_nothing(self, client, sessions, id, message):
        with connect(client, id) as socket:
            socket.send_json(message)
            assert until(socket, "error")["message"]
            socket.send_json({"type": "pause"})
            assert until(socket, "state")["state"] == "paused"

    @pytest.mark.parametrize(
        "text",
        ["", "{", "[]", "3", "null", "{}", '{"type": "explode"}', '{"type": "prompt"}', '{"type": "pause", "now": 1}',
         '{"type": "played", "num_frames": -1}', '{"type": "played", "num_frames": "1"}', '{"type": ["pause"]}',
         '{"type": "prompt", "prompt": "\\ud800"}', "[" * 50_000, '{"type": "played", "num_frames": 1e999}', "\0"],
    )  # fmt: skip
    def test_malformed_messages_close_it(self, client, sessions, id, text):
        with connect(client, id) as socket:
            until(socket, "session")
            socket.send_text(text)
            assert until(socket, "error")["code"] == "malformed"
            with pytest.raises(WebSocketDisconnect) as closed:
                socket.receive_text()
            assert closed.value.code == 1008
        eventually(lambda: sessions.num_listeners == 1)

    def test_bytes_close_it(self, client, id):
        with connect(client, id) as socket:
            until(socket, "session")
            socket.send_bytes(b"played")
            with pytest.raises(WebSocketDisconnect) as closed:
                socket.receive_text()
            assert closed.value.code == 1003


class TestBeforeItIsOpen:
    @pytest.mark.parametrize(
        ("path", "query", "status"),
        [
            ("session_0123456789abcdef", "", 404),
            ("nonsense", "", 404),
            ("session_0123456789abcdef", "?format=gif", 400),
            ("session_0123456789abcdef", "?first_chunk=-1", 400),
            ("session_0123456789abcdef", "?first_chunk=x", 400),
        ],
    )
    def test_refusals(self, client, path, query, status):
        with pytest.raises(WebSocketDenialResponse) as denied, connect(client, path, query):
            pass
        assert denied.value.status_code == status

    def test_other_paths_are_closed(self, client):
        with pytest.raises(WebSocketDisconnect), connect(client, "..%2fx"):
            pass

    def test_without_the_key(self, make_client, id):
        client = make_client(api_key=KEY)
        with pytest.raises(WebSocketDenialResponse) as denied, connect(client, id):
            pass
        assert denied.value.status_code == 401
        with client.websocket_connect(
            f"ws://localhost:8000/v1/sessions/{id}/live", headers={"Authorization": f"Bearer {KEY}"}
        ) as socket:
            until(socket, "session")

    def test_from_the_page_of_somebody_else(self, client, id):
        with (
            pytest.raises(WebSocketDenialResponse) as denied,
            client.websocket_connect(
                f"ws://localhost:8000/v1/sessions/{id}/live", headers={"Origin": "https://evil.example"}
            ),
        ):
            pass
        assert denied.value.status_code == 403

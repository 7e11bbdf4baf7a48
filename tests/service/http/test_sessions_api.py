"""The API of sessions, and the endpoints about the service."""

from __future__ import annotations

import json
from threading import Event, Thread

import httpx
import pytest

from pagedvid.service.errors import Conflict
from pagedvid.service.stats import REBUILDING
from tests.service.http.conftest import eventually, served
from tests.service.http.fake_sessions import RATE, SIZE, NewSession
from tests.service.http.test_videos import error_of

PROMPT = {"prompt": "a red circle"}


@pytest.fixture
def id(client) -> str:
    return client.post("/v1/sessions", json=PROMPT).json()["id"]


def test_a_session(client, sessions):
    session = client.post("/v1/sessions", json={**PROMPT, "num_frames": 10, "seed": 3, "priority": 2}).json()
    assert session["id"].startswith("session_")
    assert session | {"id": "", "created_at": 0} == {
        "id": "", "object": "session", "kind": "session", "state": "queued", "pause_reason": None,
        "prompt": "a red circle", "later_prompts": [], "num_frames": 10, "frames_done": 0, "chunks_done": 0,
        "num_chunks": 3, "seed": 3, "created_at": 0, "completed_at": None, "error": None, "source_id": None,
        "priority": 2, "live": False, "live_frames_per_second": None, "frames_per_second": 12.0, "width": None,
        "height": None, "stored_bytes": 1000, "bf16_bytes": 8000, "credit_seconds": None,
    }  # fmt: skip
    sessions.chunk(session["id"])
    now = client.get(f"/v1/sessions/{session['id']}").json()
    assert (now["state"], now["frames_done"], now["width"]) == ("in_progress", 4, 32)


SCHEDULE = [
    {"at_seconds": 0, "prompt": "a red circle"},
    {"at_seconds": 1, "prompt": "a blue circle"},
    {"at_seconds": 2.5, "prompt": "a green circle", "recache": True},
]


@pytest.mark.parametrize("kind", ["sessions", "videos"])
def test_prompts_by_time_become_prompts_by_frames(client, sessions, kind):
    made = client.post(f"/v1/{kind}", json={"prompts": SCHEDULE}).json()
    assert made["prompt"] == "a red circle"
    later = client.get(f"/v1/sessions/{made['id']}").json()["later_prompts"]
    assert later == [
        {"first_frame": 12, "prompt": "a blue circle", "recache": False},
        {"first_frame": 30, "prompt": "a green circle", "recache": True},
    ]
    assert [it.first_frame for it in sessions.get(made["id"]).later_prompts] == [12, 30]


def test_a_form_brings_prompts_as_json(client, sessions):
    made = client.post("/v1/videos", files={"prompts": (None, json.dumps(SCHEDULE)), "seconds": (None, "4")}).json()
    assert [it.first_frame for it in sessions.get(made["id"]).later_prompts] == [12, 30]
    response = client.post("/v1/videos", files={"prompts": (None, "[")})
    assert (response.status_code, error_of(response)["param"]) == (400, "prompts")


def entry(**fields: object) -> list[dict]:
    return [SCHEDULE[0], {**SCHEDULE[1], **fields}]


@pytest.mark.parametrize("kind", ["sessions", "videos"])
@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"prompts": SCHEDULE, **PROMPT}, "prompts", "prompt and prompts are both given"),
        ({}, "prompt", "prompt is missing"),
        ({"prompts": []}, "prompts", "at least 1 item"),
        ({"prompts": SCHEDULE[1:]}, "prompts", 'entry 1 of "prompts" has "at_seconds" 1'),
        ({"prompts": [*SCHEDULE[:2], SCHEDULE[1]]}, "prompts", "the times must ascend"),
        ({"prompts": entry(at_seconds=400)}, "prompts", "at 400 s is beyond the end of the video"),
        ({"prompts": entry(at_seconds=-1)}, "prompts.1.at_seconds", "greater than or equal to 0"),
        ({"prompts": entry(at_seconds=float("1e9"))}, "prompts.1.at_seconds", "less than or equal to"),
        ({"prompts": entry(at_seconds=True)}, "prompts.1.at_seconds", "valid number"),
        ({"prompts": entry(at_seconds="1")}, "prompts.1.at_seconds", "valid number"),
        ({"prompts": entry(prompt="  ")}, "prompts.1.prompt", "prompts.1.prompt is empty"),
        ({"prompts": entry(prompt="x" * 4001)}, "prompts.1.prompt", "at most 4000"),
        ({"prompts": entry(prompt="x\0")}, "prompts.1.prompt", "a NUL character"),
        ({"prompts": entry(recache="yes")}, "prompts.1.recache", "valid boolean"),
        ({"prompts": entry(until=3)}, "prompts.1.until", "not a parameter"),
        ({"prompts": "a red circle"}, "prompts", "valid list"),
    ],
)
def test_a_schedule_that_is_not_clear_is_refused(client, sessions, kind, body, param, words):
    response = client.post(f"/v1/{kind}", json=body)
    error = error_of(response)
    assert (response.status_code, error["param"]) == (400, param), error
    assert words in error["message"]
    assert sessions.list().records == ()


def test_reports_of_what_was_played(client, sessions, id):
    assert client.post(f"/v1/sessions/{id}/played", json={"num_frames": 3}).json()["id"] == id
    assert sessions.calls == [("played", id, 3)]
    for wrong in (-1, "1", 1.5, None, 10**12):
        response = client.post(f"/v1/sessions/{id}/played", json={"num_frames": wrong})
        assert (response.status_code, error_of(response)["param"]) == (400, "num_frames")
    assert client.post("/v1/sessions/session_0123456789/played", json={"num_frames": 3}).status_code == 404
    assert len(sessions.calls) == 1


def test_a_source_that_cannot_be_deleted_yet(client, sessions, id, monkeypatch):
    def refuse(id: str) -> None:
        raise Conflict(f"session {id} is being forked; delete those forks first")

    monkeypatch.setattr(sessions, "delete", refuse)
    response = client.delete(f"/v1/sessions/{id}")
    assert (response.status_code, error_of(response)["code"]) == (409, "conflict")
    assert error_of(response)["message"] == f"session {id} is being forked; delete those forks first"


def test_live_sessions(client):
    own = client.post("/v1/sessions", json={**PROMPT, "live": True}).json()
    assert (own["live"], own["live_frames_per_second"], own["credit_seconds"]) == (True, 12.0, 1.5)
    given = client.post("/v1/sessions", json={**PROMPT, "live_frames_per_second": 6}).json()
    assert (given["live"], given["live_frames_per_second"]) == (True, 6.0)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({**PROMPT, "num_frames": 0}, "num_frames"),
        ({**PROMPT, "num_frames": 2401}, "num_frames"),
        ({**PROMPT, "num_frames": "9"}, "num_frames"),
        ({**PROMPT, "live_frames_per_second": 0}, "live_frames_per_second"),
        ({**PROMPT, "live_frames_per_second": 1e9}, "live_frames_per_second"),
        ({**PROMPT, "live": "yes"}, "live"),
        ({**PROMPT, "seed": 2**63}, "seed"),
        ({**PROMPT, "priority": 10**9}, "priority"),
        ({**PROMPT, "inputs": {"embeddings": "/etc/passwd"}}, "inputs"),
        ({**PROMPT, "kind": "video"}, "kind"),
        ({**PROMPT, "id": "session_0123456789"}, "id"),
    ],
)
def test_refusals(client, body, param):
    response = client.post("/v1/sessions", json=body)
    assert (response.status_code, error_of(response)["param"]) == (400, param)


def test_verbs(client, sessions, id):
    sessions.chunk(id)
    assert client.post(f"/v1/sessions/{id}/pause").json()["state"] == "paused"
    assert client.post(f"/v1/sessions/{id}/resume").json()["state"] == "in_progress"
    changed = client.post(f"/v1/sessions/{id}/prompt", json={"prompt": "a blue circle", "recache": True})
    assert changed.json()["prompt"] == "a blue circle"
    assert ("prompt", id, True) in sessions.calls
    assert client.post(f"/v1/sessions/{id}/extend", json={"num_frames": 60}).json()["num_frames"] == 60
    assert client.delete(f"/v1/sessions/{id}").json() == {"id": id, "object": "session.deleted", "deleted": True}


def test_forks(client, sessions, id):
    sessions.chunk(id)
    wanted = [{"prompt": "blue", "seed": 5}, {"num_frames": 20}]
    forked = client.post(f"/v1/sessions/{id}/fork", json={"continuations": wanted}).json()["data"]
    assert [(one["prompt"], one["num_frames"], one["source_id"]) for one in forked] == [
        ("blue", 48, id),
        ("a red circle", 20, id),
    ]
    assert forked[0]["seed"] == 5


@pytest.mark.parametrize(
    "continuations",
    [
        [],
        [{}] * 9,
        [{"num_frames": 10**6}],
        [{"num_frames": 2401}],
        [{"prompt": ""}],
        [{"id": "session_0123456789"}],
        3,
    ],
)
def test_wrong_forks(client, id, continuations):
    response = client.post(f"/v1/sessions/{id}/fork", json={"continuations": continuations})
    assert response.status_code == 400
    error_of(response)


def test_verbs_that_come_too_late(client, sessions, id):
    sessions.finish(id)
    for verb, body in (("pause", None), ("resume", None), ("prompt", PROMPT), ("extend", {"num_frames": 4})):
        response = client.post(f"/v1/sessions/{id}/{verb}", json=body)
        assert (response.status_code, error_of(response)["code"]) == (409, "conflict"), verb


def test_videos_are_sessions_too(client):
    video = client.post("/v1/videos", json=PROMPT).json()["id"]
    session = client.post("/v1/sessions", json=PROMPT).json()["id"]
    assert client.get(f"/v1/sessions/{video}").json()["kind"] == "video"
    assert [one["id"] for one in client.get("/v1/sessions").json()["data"]] == [session, video]
    assert [one["id"] for one in client.get("/v1/sessions?kind=session").json()["data"]] == [session]


@pytest.mark.parametrize(
    "path",
    ["session_0123456789abcdef", "nonsense", "session_..%2f..%2fetc", "..%2f..%2fpagedvid.sqlite",
     "session_%00aaaaaaaa", "session_" + "a" * 5000, "%2e%2e",
     "session_0123456789;drop", "video_", "SESSION_0123456789"],
)  # fmt: skip
def test_ids_that_nobody_has(client, path):
    for response in (client.get(f"/v1/sessions/{path}"), client.post(f"/v1/sessions/{path}/pause")):
        assert response.status_code in (404, 405), response.text
        error_of(response)


def test_calls_that_wait_do_not_hold_up_others(sessions, monkeypatch):
    may_go = Event()
    begun = []

    def fork(id, forks):
        begun.append(id)
        may_go.wait(20)
        return []

    monkeypatch.setattr(sessions, "fork", fork)
    id = sessions.create(NewSession("a red circle", 8)).id
    body = {"continuations": [{}]}
    with served(sessions) as (host, port), httpx.Client(base_url=f"http://{host}:{port}", timeout=20) as client:
        url = f"http://{host}:{port}/v1/sessions/{id}/fork"
        waiting = [Thread(target=httpx.post, args=[url], kwargs={"json": body, "timeout": 30}) for _ in range(60)]
        for thread in waiting:
            thread.start()
        eventually(lambda: len(begun) == 60, 20)
        assert client.get(f"/v1/sessions/{id}").status_code == 200
        may_go.set()
        for thread in waiting:
            thread.join()


def test_unknown_paths_and_methods(client):
    assert "/docs lists all calls" in error_of(client.get("/v1/nothing"))["message"]
    response = client.put("/v1/sessions")
    assert (response.status_code, error_of(response)["code"]) == (405, "method_not_allowed")


class TestService:
    def test_health(self, client, sessions):
        assert client.get("/healthz").json() == {"status": "ok"}
        assert client.get("/readyz").json() == {"status": "ready"}
        sessions.worker_state = REBUILDING
        assert client.get("/healthz").status_code == 200
        response = client.get("/readyz")
        assert (response.status_code, "rebuilding" in error_of(response)["message"]) == (503, True)
        assert client.get("/v1/pool").status_code == 503

    def test_the_model(self, client):
        assert client.get("/v1/model").json() == {
            "name": "demo", "frames_per_second": RATE, "width": SIZE, "height": SIZE, "default_num_frames": 48,
            "takes_frames": True, "actions": ["left", "up-left"], "example_prompt": "a red circle",
        }  # fmt: skip

    def test_pool(self, client, sessions, id):
        sessions.chunk(id)
        pool = client.get("/v1/pool").json()
        assert pool.pop("sessions") == [
            {"id": id, "state": "running", "own_pages": 3, "shared_pages": 1, "host_bytes": 0, "credit_seconds": None}
        ]
        assert pool == {
            "num_pages": 100, "page_bytes": 4096, "free_pages": 60, "reserved_pages": 30, "used_pages": 10,
            "swapped_bytes": 0, "host_bytes": 0, "stored_bytes": 40_000, "bf16_bytes": 320_000,
            "frames_per_second": 0.4,
        }  # fmt: skip

    def test_the_openapi_page(self, client):
        assert "swagger" in client.get("/docs").text
        paths = client.get("/openapi.json").json()["paths"]
        assert {"/v1/videos", "/v1/sessions/{id}/stream.mp4", "/v1/events", "/metrics"} <= set(paths)
        assert set(paths["/v1/videos"]["post"]["requestBody"]["content"]) == {"application/json", "multipart/form-data"}

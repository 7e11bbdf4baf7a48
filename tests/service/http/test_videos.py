"""OpenAI's video API, request by request; test_openai_client.py uses its client."""

from __future__ import annotations

import io

import av
import numpy as np
import pytest
from PIL import Image

from pagedvid.service.http.settings import ServedModel
from tests.service.http.fake_sessions import SIZE

PROMPT = {"prompt": "a red circle"}


def error_of(response) -> dict:
    body = response.json()
    assert set(body) == {"error"}
    assert {"message", "type", "param", "code"} <= set(body["error"])
    return body["error"]


class TestCreate:
    def test_json(self, client, sessions):
        video = client.post("/v1/videos", json={**PROMPT, "seconds": "2", "size": "32x32", "model": "demo"}).json()
        assert video["id"].startswith("video_")
        assert video | {"id": "", "created_at": 0} == {
            "id": "", "object": "video", "model": "demo", "status": "queued", "progress": 0, "prompt": "a red circle",
            "seconds": "2", "size": "32x32", "created_at": 0, "completed_at": None, "expires_at": None, "error": None,
            "remixed_from_video_id": None,
        }  # fmt: skip
        assert sessions.get(video["id"]).num_frames == 24

    def test_multipart_is_the_same(self, client, sessions):
        fields = {name: (None, value) for name, value in {**PROMPT, "seconds": "2", "size": "32x32"}.items()}
        video = client.post("/v1/videos", files=fields).json()
        assert sessions.get(video["id"]).num_frames == 24

    def test_defaults(self, client, sessions):
        video = client.post("/v1/videos", json=PROMPT).json()
        assert sessions.get(video["id"]).num_frames == 48
        assert (video["seconds"], video["size"]) == ("4", "32x32")

    def test_seeds_differ_unless_one_is_given(self, client, sessions):
        made = [client.post("/v1/videos", json=PROMPT).json()["id"] for _ in range(3)]
        assert len({sessions.get(id).seed for id in made}) == 3
        given = client.post("/v1/videos", json={**PROMPT, "seed": 7}).json()["id"]
        assert sessions.get(given).seed == 7

    @pytest.mark.parametrize(
        ("body", "param", "words"),
        [
            ({}, "prompt", "prompt is missing"),
            ({"prompt": ""}, "prompt", "prompt"),
            ({"prompt": " \n"}, "prompt", "prompt is empty"),
            ({"prompt": 3}, "prompt", "prompt is 3"),
            ({"prompt": "x" * 4001}, "prompt", "4001 characters; at most 4000"),
            ({"prompt": "a\0b"}, "prompt", "NUL"),
            ({**PROMPT, "seconds": "soon"}, "seconds", "seconds is 'soon'"),
            ({**PROMPT, "seconds": "0"}, "seconds", "greater than 0"),
            ({**PROMPT, "seconds": "-1"}, "seconds", "greater than 0"),
            ({**PROMPT, "seconds": "nan"}, "seconds", "seconds is 'nan'"),
            ({**PROMPT, "seconds": "inf"}, "seconds", "seconds is 'inf'"),
            ({**PROMPT, "seconds": "500"}, "seconds", "6000 frames are too many; at most 2400 (200 seconds)"),
            ({**PROMPT, "size": "720x1280"}, "size", "videos of demo are 32x32"),
            ({**PROMPT, "model": "sora-2"}, "model", "model is 'sora-2'; this service has 'demo'"),
            ({**PROMPT, "seed": -1}, "seed", "seed is -1"),
            ({**PROMPT, "colour": "red"}, "colour", "colour is not a parameter"),
            ({**PROMPT, "input_reference": {"image_url": "http://x/y.png"}}, "input_reference", "one file in a form"),
        ],
    )
    def test_refusals(self, client, body, param, words):
        response = client.post("/v1/videos", json=body)
        assert response.status_code == 400
        error = error_of(response)
        assert error["type"] == "invalid_request_error"
        assert error["param"] == param
        assert words in error["message"]

    @pytest.mark.parametrize(("goes_on", "seconds", "num_frames"), [(False, "2.0833", 7), (True, "2", 6)])
    def test_the_length_of_a_video_that_goes_on(self, goes_on, seconds, num_frames):
        """Its first latent frame gives four frames as well."""
        model = ServedModel("wan", 12.0, 80, 48, frames_per_latent=4)
        assert model.num_frames(float(seconds), goes_on) == num_frames
        assert model.seconds(num_frames, goes_on) == pytest.approx(float(seconds), abs=1e-3)
        assert model.num_frames(0.01, goes_on) == 1

    @pytest.mark.parametrize(
        ("content", "kind", "status"),
        [
            (b"{", "application/json", 400),
            (b"[" * 100_000, "application/json", 400),
            (b"[]", "application/json", 400),
            (b'{"prompt": "\xff"}', "application/json", 400),
            (b'{"prompt": "\\ud800"}', "application/json", 400),
            (b'{"\\ud800": 1}', "application/json", 400),
            (b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}", "application/json", 400),
            (b"prompt", "text/plain", 415),
            (b"nothing", "multipart/form-data", 400),
            (b"--x\r\nnonsense", "multipart/form-data; boundary=x", 400),
            (b"&".join(b"a%d=1" % number for number in range(50)), "application/x-www-form-urlencoded", 400),
        ],
    )
    def test_bodies_that_cannot_be_read(self, client, content, kind, status):
        response = client.post("/v1/videos", content=content, headers={"Content-Type": kind})
        assert response.status_code == status
        error_of(response)

    @pytest.mark.parametrize(
        ("word", "status", "code"),
        [
            ("huge", 400, "does_not_fit"),
            ("unknown", 400, "invalid_prompt"),
            ("full", 429, "busy"),
            ("stopping", 503, "closing"),
            ("dead", 503, "worker"),
            ("disk", 500, "internal"),
            ("broken", 500, "internal"),
        ],
    )
    def test_errors_of_the_sessions(self, client, word, status, code):
        response = client.post("/v1/videos", json={"prompt": word})
        assert (response.status_code, error_of(response)["code"]) == (status, code)

    def test_a_full_service_says_when_and_why(self, client):
        response = client.post("/v1/videos", json={"prompt": "full"})
        assert response.headers["Retry-After"] == "8"
        error = error_of(response)
        assert (error["type"], error["numbers"]) == ("rate_limit_error", {"queued": 64, "max_queued": 64})

    def test_an_unexpected_error_tells_nothing(self, client):
        for word in ("broken", "disk"):
            assert "secret" not in client.post("/v1/videos", json={"prompt": word}).text


class TestReading:
    @pytest.fixture
    def id(self, client) -> str:
        return client.post("/v1/videos", json=PROMPT).json()["id"]

    def test_progress(self, client, sessions, id):
        sessions.chunk(id)
        response = client.get(f"/v1/videos/{id}")
        assert (response.json()["status"], response.json()["progress"]) == ("in_progress", 8)
        assert response.headers["openai-poll-after-ms"].isdecimal()
        sessions.pause(id)
        assert client.get(f"/v1/videos/{id}").json()["status"] == "in_progress"
        sessions.resume(id)
        sessions.finish(id)
        done = client.get(f"/v1/videos/{id}").json()
        assert (done["status"], done["progress"]) == ("completed", 100)
        assert done["completed_at"] >= done["created_at"]

    def test_a_failed_video_says_why(self, client, sessions, id):
        sessions.fail(id)
        video = client.get(f"/v1/videos/{id}").json()
        assert (video["status"], video["error"]["code"]) == ("failed", "ModelError")

    def test_video(self, client, sessions, id):
        response = client.get(f"/v1/videos/{id}/content")
        assert (response.status_code, error_of(response)["code"]) == (409, "conflict")
        sessions.finish(id)
        response = client.get(f"/v1/videos/{id}/content", params={"variant": "video"})
        assert response.headers["content-type"] == "video/mp4"
        with av.open(io.BytesIO(response.content)) as container:
            assert sum(1 for _ in container.decode(video=0)) == 48
        part = client.get(f"/v1/videos/{id}/content", headers={"Range": "bytes=0-7"})
        assert (part.status_code, len(part.content)) == (206, 8)

    def test_thumbnail_and_sheet(self, client, sessions, id):
        for variant in ("thumbnail", "spritesheet"):
            assert client.get(f"/v1/videos/{id}/content", params={"variant": variant}).status_code == 409
        sessions.finish(id)
        pictures = {}
        for variant in ("thumbnail", "spritesheet"):
            response = client.get(f"/v1/videos/{id}/content", params={"variant": variant})
            assert response.headers["content-type"] == "image/jpeg"
            pictures[variant] = np.asarray(Image.open(io.BytesIO(response.content)).convert("L"))
        assert pictures["thumbnail"].shape == (SIZE, SIZE)
        assert abs(pictures["thumbnail"].mean() - (20 + 4 * 24)) < 3
        sheet = pictures["spritesheet"].reshape(4, SIZE, 4, SIZE).mean(axis=(1, 3)).ravel()
        assert np.abs(sheet - (20 + 4 * (3 * np.arange(16) + 1))).max() < 4

    def test_unknown_variant(self, client, id):
        assert error_of(client.get(f"/v1/videos/{id}/content?variant=gif"))["param"] == "variant"

    def test_deleting(self, client, id):
        assert client.delete(f"/v1/videos/{id}").json() == {"id": id, "object": "video.deleted", "deleted": True}
        for response in (client.get(f"/v1/videos/{id}"), client.delete(f"/v1/videos/{id}")):
            assert (response.status_code, error_of(response)["code"]) == (404, "not_found")

    def test_sessions_are_no_videos(self, client):
        id = client.post("/v1/sessions", json=PROMPT).json()["id"]
        assert client.get(f"/v1/videos/{id}").status_code == 404
        assert client.get("/v1/videos").json()["data"] == []

    def test_pages(self, client):
        ids = [client.post("/v1/videos", json=PROMPT).json()["id"] for _ in range(5)]
        first = client.get("/v1/videos?limit=2&order=asc").json()
        assert [video["id"] for video in first["data"]] == ids[:2]
        assert (first["first_id"], first["last_id"], first["has_more"]) == (ids[0], ids[1], True)
        rest = client.get(f"/v1/videos?order=asc&after={ids[1]}").json()
        assert ([video["id"] for video in rest["data"]], rest["has_more"]) == (ids[2:], False)
        assert [video["id"] for video in client.get("/v1/videos").json()["data"]] == ids[::-1]
        empty = client.get(f"/v1/videos?order=asc&after={ids[4]}").json()
        assert (empty["data"], empty["first_id"], empty["has_more"]) == ([], None, False)

    @pytest.mark.parametrize("query", ["limit=0", "limit=101", "limit=x", "order=up", "after=../x"])
    def test_wrong_pages(self, client, query):
        assert error_of(client.get(f"/v1/videos?{query}"))["param"] == query.partition("=")[0]

    def test_a_page_after_an_unknown_video(self, client):
        assert client.get("/v1/videos?after=video_0123456789").status_code == 404


class TestRemix:
    def test_of_a_video_in_the_making(self, client, sessions):
        id = client.post("/v1/videos", json=PROMPT).json()["id"]
        sessions.chunk(id)
        remix = client.post(f"/v1/videos/{id}/remix", json={"prompt": "a blue circle"}).json()
        assert (remix["prompt"], remix["remixed_from_video_id"], remix["seconds"]) == ("a blue circle", id, "4")

    def test_of_a_complete_video(self, client, sessions):
        id = client.post("/v1/videos", json=PROMPT).json()["id"]
        sessions.finish(id)
        assert client.post(f"/v1/videos/{id}/remix", json={"prompt": "blue"}).json()["seconds"] == "8"
        longer = client.post(f"/v1/videos/{id}/remix", json={"prompt": "blue", "seconds": 5}).json()
        assert longer["seconds"] == "5"

    def test_refusals(self, make_client, sessions):
        client = make_client(max_frames=60)
        id = client.post("/v1/videos", json=PROMPT).json()["id"]
        assert error_of(client.post(f"/v1/videos/{id}/remix", json={"prompt": "a" * 4001}))["param"] == "prompt"
        sessions.finish(id)
        too_long = error_of(client.post(f"/v1/videos/{id}/remix", json={"prompt": "blue"}))
        assert (too_long["param"], "96 frames are too many" in too_long["message"]) == ("seconds", True)
        sessions.fail(id)
        assert client.post(f"/v1/videos/{id}/remix", json={"prompt": "b", "seconds": 5}).status_code == 409

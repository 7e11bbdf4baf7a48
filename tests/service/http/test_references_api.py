"""Pictures and videos to go on from, as forms bring them: over fake sessions what is asked of these, and over a real
engine with a small demo model what comes of it."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import replace

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from pagedvid.engine.requests import VideoRequest
from pagedvid.output.given_frames import with_given_frames
from pagedvid.output.mp4 import VideoWriter
from pagedvid.service.http.app import create_app
from pagedvid.service.records import Reference
from tests.engine.test_prefix import PROMPT, engine_of
from tests.service import test_references as real
from tests.service.http.conftest import MODEL, settings
from tests.service.http.fake_sessions import RATE
from tests.service.http.test_videos import error_of

PNG, FILM = b"\x89PNG\r\n\x1a\n...", b"....ftypisom...."
KINDS = pytest.mark.parametrize("kind", ["videos", "sessions"])

begin, still = real.begin, real.still  # fixtures


def post(client: httpx.Client, kind: str, content: bytes | None, **fields: object) -> httpx.Response:
    """Asks for a video or a session by a form, with a file if there is any."""
    form: dict[str, tuple] = {name: (None, str(value)) for name, value in {"prompt": PROMPT, **fields}.items()}
    if content is not None:
        form["input_reference"] = ("x.txt", content, "text/plain")
    return client.post(f"/v1/{kind}", files=form)


@KINDS
@pytest.mark.parametrize(
    ("content", "found"),
    [(PNG, "image"), (b"\xff\xd8\xff...", "image"), (b"RIFF....WEBP", "image"), (FILM, "video")],
)
def test_a_reference_is_what_its_first_bytes_are(client, sessions, kind, content, found):
    """Whatever its name and its kind say."""
    id = post(client, kind, content).json()["id"]
    assert sessions.references[id] == Reference(found, content)
    assert sessions.get(id).goes_on


@KINDS
@pytest.mark.parametrize(
    "given",
    [("x.png", b"picture", "image/png"), ("x.png", b"", "image/png"), (None, "x.png"),
     ("x.m3u8", b"#EXTM3U\nfile:///etc/passwd", "image/png")],
)  # fmt: skip
def test_anything_else_is_refused_and_not_kept(client, sessions, kind, given):
    response = client.post(f"/v1/{kind}", files={"prompt": (None, "a red circle"), "input_reference": given})
    assert (response.status_code, error_of(response)["param"]) == (400, "input_reference")
    assert "PNG, JPEG, WebP (pictures) and mp4 (videos)" in error_of(response)["message"]
    assert sessions.list().records == ()


@KINDS
def test_one_file_at_most_and_not_larger_than_a_body(client, make_client, kind):
    file = ("x.png", PNG + bytes(100_000), "image/png")
    files = [("prompt", (None, "red")), ("input_reference", file), ("input_reference", file)]
    assert client.post(f"/v1/{kind}", files=files).status_code == 400
    assert make_client(max_body="64KiB").post(f"/v1/{kind}", files=files[:2]).status_code == 413


@KINDS
@pytest.mark.parametrize("name", ["prompt", "seed", ""])
def test_another_field_is_no_file(client, sessions, kind, name):
    text = {} if name == "prompt" else {"prompt": (None, "red")}
    response = client.post(f"/v1/{kind}", files={**text, name: ("x.png", PNG, "image/png")})
    assert (response.status_code, error_of(response)["param"]) == (400, name)
    assert f"{name!r} is a file; only input_reference can be one" in error_of(response)["message"]
    assert sessions.list().records == ()


@KINDS
def test_a_model_that_takes_none_refuses_before_anything_is_kept(make_client, sessions, kind):
    client = make_client(model=replace(MODEL, takes_frames=False))
    error = error_of(post(client, kind, PNG))
    assert error["message"] == "demo takes no image or video file; leave input_reference out"
    assert (error["param"], sessions.list().records) == ("input_reference", ())
    assert post(client, kind, None).status_code == 200


def test_a_form_brings_what_json_brings(client, sessions):
    fields = {"num_frames": 10, "seed": 3, "priority": -2, "live_frames_per_second": 6, "live": True}
    by_form, by_json = (
        answer.json() | {"id": "", "created_at": 0}
        for answer in (
            post(client, "sessions", PNG, **fields),
            client.post("/v1/sessions", json={"prompt": PROMPT, **fields}),
        )
    )
    assert by_form == by_json
    prompts = [{"at_seconds": 0, "prompt": "a"}, {"at_seconds": 1, "prompt": "b"}]
    form = {"prompts": (None, json.dumps(prompts)), "input_reference": ("x", FILM), "start_seconds": (None, "2.5")}
    id = client.post("/v1/sessions", files=form).json()["id"]
    assert [it.first_frame for it in sessions.get(id).later_prompts] == [RATE]
    assert sessions.references[id] == Reference("video", FILM, 2.5)
    assert error_of(post(client, "sessions", PNG, num_frames="many"))["param"] == "num_frames"


@KINDS
@pytest.mark.parametrize(
    ("content", "start", "words"),
    [
        (PNG, 1, "start_seconds is a time in a video that is given as input_reference, but it is a picture"),
        (None, 1, "but there is none: leave start_seconds out"),
        (FILM, -1, "start_seconds is '-1': Input should be greater than or equal to 0"),
        (FILM, 1e7, "less than or equal to 1000000"),
        (FILM, "nan", "start_seconds is 'nan'"),
        (FILM, "soon", "start_seconds is 'soon'"),
    ],
)
def test_a_time_to_start_at_that_cannot_be(client, sessions, kind, content, start, words):
    response = post(client, kind, content, start_seconds=start)
    error = error_of(response)
    assert (response.status_code, error["param"]) == (400, "start_seconds")
    assert words in error["message"]
    assert sessions.list().records == ()


@KINDS
def test_json_has_no_file_and_so_no_time_in_it(client, kind):
    for wrong, param in (
        ({"start_seconds": 1}, "start_seconds"),
        ({"start_seconds": "1"}, "start_seconds"),
        ({"input_reference": {"image_url": "data:image/png;base64,iVBORw0KGgo="}}, "input_reference"),
    ):
        response = client.post(f"/v1/{kind}", json={"prompt": PROMPT, **wrong})
        assert (response.status_code, error_of(response)["param"]) == (400, param)
    nothing = {"start_seconds": None, "input_reference": None}
    assert client.post(f"/v1/{kind}", json={"prompt": PROMPT, **nothing}).status_code == 200


# ------------------------------------------------------------------ with a real engine


def client_of(service: real.DemoService) -> TestClient:
    return TestClient(create_app(service.sessions, settings()), base_url="http://localhost:8000")


@pytest.fixture(scope="module")
def film(tmp_path_factory) -> bytes:
    """Two seconds at the speed of the model; each frame is brighter than the one before."""
    path = tmp_path_factory.mktemp("film") / "given.mp4"
    writer = VideoWriter(path, RATE, scale=4)
    writer.add(np.arange(0, 240, 10, dtype=np.uint8)[:, None, None, None] * np.ones((1, 32, 32, 3), np.uint8))
    writer.finish()
    writer.publish()
    return path.read_bytes()


def test_a_live_session_from_a_picture_has_the_frames_of_the_video_from_it(begin, still, tmp_path):
    service = begin(steps=5)
    with client_of(service) as client:
        live = post(client, "sessions", real.png().content, num_frames=real.NUM_FRAMES, seed=3, live=True).json()
        assert live["live"]
        service.wait_for_steps(5)
        service.settle()
        shutil.copytree(service.folder, tmp_path / "killed")
        (fork,) = client.post(f"/v1/sessions/{live['id']}/fork", json={"continuations": [{}]}).json()["data"]
        video = post(client, "videos", real.png().content, seconds=real.NUM_FRAMES / RATE, seed=3).json()
        service.let()
        for id in (live["id"], fork["id"], video["id"]):
            service.wait_for(id)
            assert service.content(id) == still
    again = begin("killed")
    again.wait_for(live["id"])
    assert again.content(live["id"]) == still


@KINDS
def test_a_video_is_gone_on_from_where_it_is_asked(begin, film, tmp_path, kind):
    (tmp_path / "given.mp4").write_bytes(film)
    inputs = {"video": str(tmp_path / "given.mp4"), "start_seconds": 1.0}
    given = with_given_frames(VideoRequest("a", PROMPT, real.NUM_FRAMES, 3, inputs), engine_of(real.small_model()))
    expected = real.recorded(real.frames_after(given.inputs["prefix"]["frames"].numpy()))
    service, length = begin(steps=0), {"videos": {"seconds": 2}, "sessions": {"num_frames": real.NUM_FRAMES}}[kind]
    with client_of(service) as client:
        start, end = (post(client, kind, film, seed=3, **length, **more).json() for more in ({"start_seconds": 1}, {}))
    service.settle()
    shutil.copytree(service.folder, tmp_path / "killed")
    again = begin("killed")
    for id in (start["id"], end["id"]):
        again.wait_for(id)
    assert again.content(start["id"]) == expected != again.content(end["id"])


def test_forks_that_begin_anew_start_where_their_source_does(begin, film):
    service = begin(steps=0)
    with client_of(service) as client:
        id = post(client, "sessions", film, num_frames=real.NUM_FRAMES, seed=3, start_seconds=1).json()["id"]
        (fork,) = client.post(f"/v1/sessions/{id}/fork", json={"continuations": [{}]}).json()["data"]
    service.let()
    for one in (id, fork["id"]):
        service.wait_for(one)
    assert service.sessions.get(fork["id"]).inputs["start_seconds"] == 1
    assert service.content(fork["id"]) == service.content(id)


@KINDS
def test_the_parameter_that_is_at_fault_is_named(begin, film, kind):
    wide = io.BytesIO()
    Image.new("RGB", (64, 32)).save(wide, "PNG")
    service = begin()
    with client_of(service) as client:
        for content, start, param, words in (
            (wide.getvalue(), None, "input_reference", "input_reference has 64 x 32 pixels"),
            (real.png().content[:300], None, "input_reference", "input_reference cannot be read"),
            (film[: len(film) // 2], None, "input_reference", "input_reference"),
            (film, 0.25, "start_seconds", "input_reference has 0.25 s before the new video begins"),
            (film, 2.5, "start_seconds", "start_seconds is 2.5; input_reference ends at 2 s"),
        ):
            response = post(client, kind, content, **({} if start is None else {"start_seconds": start}))
            error = error_of(response)
            assert (response.status_code, error["code"], error["param"]) == (400, "invalid_value", param)
            assert words in error["message"]
    assert service.sessions.list().records == ()
    assert list((service.folder / "sessions").iterdir()) == []

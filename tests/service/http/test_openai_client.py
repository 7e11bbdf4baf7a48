"""The official client, unmodified, against a real server."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator

import av
import openai
import pytest
from PIL import Image

from tests.service.http.conftest import KEY, served
from tests.service.http.fake_sessions import FakeSessions

pytestmark = pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")


@pytest.fixture
def client(sessions: FakeSessions) -> Iterator[openai.OpenAI]:
    with served(sessions, api_key=KEY) as (host, port):
        yield openai.OpenAI(base_url=f"http://{host}:{port}/v1", api_key=KEY, max_retries=0)


def test_the_whole_way(client: openai.OpenAI, sessions: FakeSessions) -> None:
    video = client.videos.create(prompt="a red circle", seconds="4", size="32x32", model="demo")
    assert (video.status, video.object, video.seconds) == ("queued", "video", "4")
    finishing = threading.Timer(0.2, sessions.finish, [video.id])
    finishing.start()
    done = client.videos.poll(video.id, poll_interval_ms=50)
    assert (done.status, done.progress) == ("completed", 100)
    content = client.videos.download_content(video.id)
    with av.open(io.BytesIO(content.read())) as container:
        assert sum(1 for _ in container.decode(video=0)) == 48
    for variant in ("thumbnail", "spritesheet"):
        assert Image.open(io.BytesIO(client.videos.download_content(video.id, variant=variant).read())).format == "JPEG"
    remix = client.videos.remix(video.id, prompt="a blue circle")
    assert remix.remixed_from_video_id == video.id
    assert [listed.id for listed in client.videos.list()] == [remix.id, video.id]
    assert client.videos.delete(video.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.videos.retrieve(video.id)


def test_it_sends_a_picture(client: openai.OpenAI, sessions: FakeSessions, tmp_path) -> None:
    Image.new("RGB", (32, 32)).save(tmp_path / "start.png")
    video = client.videos.create(prompt="a red circle", input_reference=tmp_path / "start.png")
    reference = sessions.references[video.id]
    assert reference is not None
    assert (reference.kind, reference.content) == ("image", (tmp_path / "start.png").read_bytes())


def test_create_and_poll(client: openai.OpenAI, sessions: FakeSessions) -> None:
    def finish_when_there_is_one() -> None:
        while not (page := sessions.list()).records:
            pass
        sessions.finish(page.records[0].id)

    threading.Thread(target=finish_when_there_is_one).start()
    assert client.videos.create_and_poll(prompt="a red circle", poll_interval_ms=20).status == "completed"


def test_it_pages_through_all_videos(client: openai.OpenAI) -> None:
    made = [client.videos.create(prompt="a red circle").id for _ in range(5)]
    page = client.videos.list(limit=2, order="asc")
    assert page.has_next_page()
    assert [video.id for video in page] == made


def test_errors_are_its_own(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as wrong:
        client.videos.create(prompt="a red circle", size="720x1280")
    assert (wrong.value.param, wrong.value.code) == ("size", "invalid_value")
    with pytest.raises(openai.BadRequestError) as picture:
        client.videos.create(prompt="a red circle", input_reference=("x.png", b"picture", "image/png"))
    assert picture.value.param == "input_reference"
    with pytest.raises(openai.RateLimitError) as full:
        client.videos.create(prompt="full")
    assert full.value.response.headers["retry-after"] == "8"
    with pytest.raises(openai.ConflictError):
        client.videos.download_content(client.videos.create(prompt="a red circle").id)
    with pytest.raises(openai.InternalServerError):
        client.videos.create(prompt="broken")


def test_another_key_is_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="another-key-of-some-length").videos.list()


def test_the_asynchronous_client(sessions: FakeSessions) -> None:
    import asyncio

    async def use(base_url: str) -> str:
        async with openai.AsyncOpenAI(base_url=base_url, api_key="any") as client:
            video = await client.videos.create(prompt="a red circle")
            sessions.finish(video.id)
            return (await client.videos.poll(video.id, poll_interval_ms=20)).status

    with served(sessions) as (host, port):
        assert asyncio.run(use(f"http://{host}:{port}/v1")) == "completed"

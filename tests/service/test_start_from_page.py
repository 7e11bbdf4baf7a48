"""The fields of the page for a file that a session starts from, in a real browser against a real server.

PAGEDVID_SCREENSHOTS names a folder for pictures of them.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pagedvid.output.mp4 import VideoWriter
from tests.service.browser import CHROMIUM, DRIVER, Page, chromium
from tests.service.http.conftest import MODEL
from tests.service.http.conftest import served as served_here
from tests.service.http.fake_sessions import FakeSessions

pytestmark = [
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver on the PATH"),
    pytest.mark.timeout(300),
]
pytest.importorskip("selenium", reason="needs selenium to drive the browser")

PROMPT = "a large red circle moving left on a black background"
FORM = "#new-session"


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.new("RGB", (32, 32), (200, 0, 0)).save(tmp_path / "start.png")
    return tmp_path / "start.png"


@pytest.fixture
def film(tmp_path: Path) -> Path:
    """Of 16 frames, 1.33 seconds."""
    writer = VideoWriter(tmp_path / "start.mp4", 12, scale=8)
    writer.add(np.full((16, 32, 32, 3), 90, dtype=np.uint8))
    writer.finish()
    writer.publish()
    return tmp_path / "start.mp4"


def test_a_session_starts_from_a_picture(driver, server_url, picture):
    page = Page(driver, server_url)
    page.show_as(1280, 1000)
    page.fill(FORM, input_reference=picture)
    assert not page.find(f"{FORM} [name=start_seconds]").is_displayed(), "a picture has no time in it"
    card = page.start(PROMPT, num_frames=8, live_frames_per_second=6)
    page.wait(lambda: card.state() == "completed", "the end")
    assert page.find(f"{FORM} [name=input_reference]").get_attribute("value") == ""
    card.send("delete")


def test_a_session_starts_at_a_time_in_a_video(driver, server_url, film):
    page = Page(driver, server_url)
    page.fill(FORM, input_reference=film, start_seconds=5, prompt=PROMPT)
    page.find(f"{FORM} [type=submit]").click()
    problem = page.wait(lambda: page.find("#new-problem").text, "the server's words")
    assert "start_seconds is 5; input_reference ends at 1.33333 s" in problem
    card = page.start(PROMPT, num_frames=8, start_seconds=1)
    page.wait(lambda: card.state() == "completed", "the end")
    assert not page.find(f"{FORM} [name=start_seconds]").is_displayed(), "the file is gone from the form"
    card.send("delete")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_the_fields_fit_the_window(driver, server_url, film, width, dark):
    page = Page(driver, server_url)
    page.show_as(width, 900, dark=dark)
    page.fill(FORM, input_reference=film, start_seconds=1)
    root = "document.documentElement"
    assert driver.execute_script(f"return {root}.scrollWidth <= {root}.clientWidth"), "nothing sticks out sideways"
    page.picture(f"start-from-{width}-{'dark' if dark else 'light'}")


def test_no_file_is_asked_for_where_the_model_takes_none(driver, tmp_path):
    for takes_frames in (True, False):
        model = replace(MODEL, takes_frames=takes_frames)
        with served_here(FakeSessions(tmp_path), model=model) as (host, port):
            page = Page(driver, f"http://{host}:{port}")
            prompt = page.find(f"{FORM} [name=prompt]")
            page.wait(lambda prompt=prompt: prompt.get_attribute("placeholder"), "the model to be known")
            fields = [page.find(css) for css in (f"{FORM} [name=input_reference]", "#file-help")]
            assert [field.is_displayed() for field in fields] == [takes_frames] * 2
            driver.get("about:blank")  # the server waits for nobody

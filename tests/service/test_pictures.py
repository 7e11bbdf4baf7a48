"""The page while much goes on, as docs/serve.md shows it. The pictures there are made by

PAGEDVID_SCREENSHOTS=docs/images python -m pytest tests/service/test_pictures.py
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from serving.server import Server
from tests.service.browser import CHROMIUM, DRIVER, Card, Page, chromium

pytestmark = [
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver on the PATH"),
    pytest.mark.timeout(300),
]
pytest.importorskip("selenium", reason="needs selenium to drive the browser")

SETTINGS = {
    "cache.memory": "1152KiB",
    "cache.host_memory": "1MiB",
    "engine.policy": "deadline",
    "engine.live_admission": "all",
}
"""A pool that four videos fill."""
LONG_FRAMES = 2400
"""More than are made while the pictures are taken."""
WINDOWS = {"page-light": (1200, 1460, False), "page-dark": (1200, 1460, True), "page-phone": (390, 1490, False)}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """Two live sessions, two that share their history, and one whose pages made room for theirs."""
    folder = tmp_path_factory.mktemp("pictures")
    with Server(folder / "data", SETTINGS) as server, chromium(folder / "profile") as driver:
        page = Page(driver, server.address)
        page.show_as(1200, 1460)
        held = page.start("a large green square moving right on a brown background", num_frames=LONG_FRAMES, seed=1)
        page.wait(lambda: held.playback()[0] > 3, "its first frames")
        held.press("pause")
        page.wait(lambda: held.state() == "paused", "the pause")
        source = page.start("a large red circle moving left on a black background", num_frames=LONG_FRAMES, seed=2)
        page.wait(lambda: source.playback()[0] > 3, "frames of the source")
        source.send("fork", prompt="a large blue circle moving left on a black background", copies=1)
        page.wait(lambda: len(page.card_ids()) == 3, "the fork")
        live = {"num_frames": LONG_FRAMES, "seed": 3, "live_frames_per_second": 3}
        page.start("a small yellow triangle circling on a navy background", **live)
        page.start("a large purple cross bouncing on a teal background", **live)
        page.wait(lambda: driver.find_elements("css selector", ".card.swapped"), "a session in host memory")
        page.wait(lambda: driver.find_elements("css selector", ".card.shares"), "history that is shared")
        for card in (Card(page, id) for id in page.card_ids()):
            page.wait(lambda card=card: card.playback()[0] > 2, "every video to be under way")
        page.fill("#new-session", prompt="", num_frames="", seed="", live_frames_per_second="")
        yield page


@pytest.mark.parametrize("name", WINDOWS)
def test_a_busy_page_fits_its_window(page, name):
    width, height, dark = WINDOWS[name]
    page.show_as(width, height, dark=dark)
    page.driver.execute_script("document.activeElement.blur(); scrollTo(0, 0)")
    page.wait(lambda: page.find("#total-pages").text != "0", "pages in use")
    root = "document.documentElement"
    assert page.driver.execute_script(f"return {root}.scrollWidth <= {root}.clientWidth"), "nothing sticks out sideways"
    page.picture(name)

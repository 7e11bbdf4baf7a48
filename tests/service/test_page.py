"""The page in a real browser against a real server: what a person does there, and what they see.

PAGEDVID_SCREENSHOTS names a folder for pictures of it.
"""

from __future__ import annotations

import json
import math

import pytest

from tests.service.browser import CHROMIUM, DRIVER, Page, chromium

pytestmark = [
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver on the PATH"),
    pytest.mark.timeout(300),
]
pytest.importorskip("selenium", reason="needs selenium to drive the browser")

PROMPT = "a large red circle moving left on a black background"
OTHER_PROMPT = "a small yellow triangle circling on a navy background"
FRAMES_PER_SECOND = 12
LONG_FRAMES = 960
"""More than are made while a test looks on."""


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def page(driver, server_url):
    page = Page(driver, server_url)
    page.show_as(1280, 1000)
    yield page
    page.show_as(1280, 1000)
    _delete_all(driver)


def _delete_all(driver):
    driver.execute_async_script(
        """const done = arguments[0];
        fetch("/v1/sessions?limit=100").then((response) => response.json()).then(({data}) =>
            Promise.all(data.map(({id}) => fetch("/v1/sessions/" + id, {method: "DELETE"})))).then(done);"""
    )


def test_a_video_plays_while_it_is_made(page):
    card = page.start(PROMPT, num_frames=LONG_FRAMES, live_frames_per_second=2)
    first, _ = page.wait(lambda: card.playback()[0] > 0 and card.playback(), "the first frames")
    page.wait(lambda: card.playback()[0] > first, "more frames")
    page.wait(lambda: card.playback()[1] > 0.2, "the video to play")
    assert card.state() == "in_progress"
    page.wait(lambda: card.part("credit").endswith("ahead"), "credit in words")
    assert "frames, " in card.part("progress") and card.part("progress").endswith("chunks")
    page.wait(lambda: "bf16 would be" in card.part("bytes"), "stored bytes")
    page.wait(lambda: page.find("#total-pages").text != "0", "pages in use")
    page.picture("playing")


def test_a_live_session_is_made_for_where_its_viewer_is(page):
    """By the clock its credit would fall from second to second, whatever the viewer does."""
    speed = 2
    card = page.start(PROMPT, num_frames=LONG_FRAMES, live_frames_per_second=speed)
    page.wait(lambda: card.playback()[1] * FRAMES_PER_SECOND > 3 * speed, "three seconds to be watched")
    page.wait(lambda: _seconds_ahead(page, card, speed) < -2, "the server to know that they were")
    video = f"document.querySelector('{card.css} video')"
    page.driver.execute_script(f"{video}.pause(); {video}.currentTime = 0")
    page.wait(lambda: _seconds_ahead(page, card, speed) > -0.5, "the server to know of the way back")
    page.wait(lambda: "ahead" in card.part("credit"), "credit in words")
    page.driver.execute_script(f"{video}.currentTime = 6 / {FRAMES_PER_SECOND}")
    page.wait(lambda: _seconds_ahead(page, card, speed) < -2.5, "the server to know of the way forth")


def _seconds_ahead(page, card, speed) -> float:
    """The credit of a session, less the length of its video for its viewer: 0 if nothing was played."""
    session = page.driver.execute_async_script(
        """const [id, done] = arguments;
        fetch("/v1/sessions/" + id).then((response) => response.json()).then(done);""",
        card.id,
    )
    return session["credit_seconds"] - session["frames_done"] / speed


def test_a_video_is_complete_in_the_end(page):
    card = page.start(PROMPT, num_frames=32, seed=3)
    page.wait(lambda: card.state() == "completed", "the end")
    seconds = page.driver.execute_script("return document.querySelector(arguments[0] + ' video').duration", card.css)
    buffered, _ = page.wait(lambda: card.playback()[0] > 2.5 and card.playback(), "all frames")
    assert buffered == pytest.approx(32 / FRAMES_PER_SECOND, abs=0.05)
    page.wait(lambda: card.part("progress").startswith("32 "), "all frames in words")
    assert seconds is None or seconds >= buffered - 0.05
    assert card.part("state") == "complete"


def test_forks_share_and_go_on(page):
    source = page.start(PROMPT, num_frames=LONG_FRAMES)
    page.wait(lambda: source.playback()[0] > 0, "frames of the source")
    source.send("fork", prompt=OTHER_PROMPT, copies=2)
    page.wait(lambda: len(page.card_ids()) == 3, "two forks")
    forks = [id for id in page.card_ids() if id != source.id]
    origins = [page.find(f'.card[data-id="{id}"] [data-part="origin"]').text for id in forks]
    assert all(f"fork of “{PROMPT}”" in origin for origin in origins)
    assert len(set(origins)) == 2, "the copies have different seeds"
    page.wait(lambda: page.driver.find_elements("css selector", ".card.shares"), "pages that are shared")
    label = page.find("#pool-canvas").get_attribute("aria-label")
    page.wait(lambda: "shared by several" in page.find("#pool-canvas").get_attribute("aria-label"), label)
    page.picture("forks")


def test_prompt_pause_resume_extend_and_cancel(page):
    card = page.start(PROMPT, num_frames=LONG_FRAMES)
    page.wait(lambda: card.playback()[0] > 0, "frames")
    card.send("prompt", prompt=OTHER_PROMPT)
    page.wait(lambda: card.part("prompt") == OTHER_PROMPT, "the other prompt")
    card.send("extend", num_frames=2 * LONG_FRAMES)
    page.wait(lambda: f"of {2 * LONG_FRAMES // 8} chunks" in card.part("progress"), "the new length")
    card.press("pause")
    page.wait(lambda: card.state() == "paused", "the pause")
    page.picture("paused")
    card.press("resume")
    page.wait(lambda: card.state() == "in_progress", "it to go on")
    card.open("delete")
    assert "Cancel" in page.find(f"{card.css} .panel").text
    page.picture("cancel")
    page.find(f"{card.css} .panel [data-close]").click()
    assert card.id in page.card_ids()
    card.send("delete")
    page.wait(lambda: card.id not in page.card_ids(), "the card to go")


def test_what_the_server_refuses_is_said_in_place(page):
    page.fill("#new-session", prompt='<img src="x" onerror="document.title = 1"> purpel', num_frames=8)
    page.find("#new-session [type=submit]").click()
    problem = page.wait(lambda: page.find("#new-problem").text, "the server's words")
    assert "purpel" in problem or "img" in problem
    assert page.driver.title == "pagedvid" and not page.driver.find_elements("css selector", "main img")
    assert page.find("#new-session [name=prompt]").get_attribute("value"), "the prompt is kept for another try"


def test_a_lost_connection_shows_and_comes_back(page):
    network = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    page.driver.execute_cdp_cmd("Network.enable", {})
    page.driver.execute_cdp_cmd("Network.emulateNetworkConditions", {"offline": True, **network})
    try:
        page.wait(lambda: page.connection().startswith("Connection lost"), "the loss to show")
        page.picture("lost")
    finally:
        page.driver.execute_cdp_cmd("Network.emulateNetworkConditions", {"offline": False, **network})
    page.wait(lambda: page.connection() == "Connected", "the connection")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_fits_the_window(page, width, dark):
    page.show_as(width, 1000, dark=dark)
    card = page.start(PROMPT, num_frames=LONG_FRAMES, live_frames_per_second=2)
    page.wait(lambda: card.playback()[0] > 0, "frames")
    card.open("fork")
    root = "document.documentElement"
    assert page.driver.execute_script(f"return {root}.scrollWidth <= {root}.clientWidth"), "nothing sticks out sideways"
    page.picture(f"{width}-{'dark' if dark else 'light'}")


def test_the_keyboard_reaches_a_panel_and_returns(page):
    from selenium.webdriver.common.keys import Keys

    card = page.start(PROMPT, num_frames=LONG_FRAMES)
    page.wait(lambda: card.state() == "in_progress", "it to begin")
    opener = page.find(f"{card.css} [data-panel=prompt]")
    opener.send_keys(Keys.ENTER)
    assert opener.get_attribute("aria-expanded") == "true"
    page.driver.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert page.driver.switch_to.active_element == opener
    assert opener.get_attribute("aria-expanded") == "false"


def test_the_map_adds_up_to_the_pool(page):
    """Laid out by the page's own module; shared pages are counted once and every page has its place."""
    pool = {
        "num_pages": 100_000,
        "page_bytes": 1024,
        "used_pages": 700,
        "reserved_pages": 300,
        "sessions": [
            {"id": "a", "own_pages": 100, "shared_pages": 150, "host_bytes": 0},
            {"id": "b", "own_pages": 50, "shared_pages": 150, "host_bytes": 0},
            {"id": "c", "own_pages": 400, "shared_pages": 0, "host_bytes": 0},
            {"id": "d", "own_pages": 0, "shared_pages": 0, "host_bytes": 2500},
        ],
    }
    script = """const [pool, done] = arguments;
        const from = new URL("pool_layout.js", document.querySelector("script[type=module]").src);
        const sourceOf = (id) => (id === "b" ? "a" : undefined);
        import(from).then(({layOut, layOutSwapped, gridFor, drawnPages}) =>
            done([layOut(pool, sourceOf), layOutSwapped(pool), gridFor(100000, 1200, 170), drawnPages(pool)]));"""
    runs, swapped, grid, drawn = page.driver.execute_async_script(script, pool)
    assert [(run["kind"], "".join(run["ids"]), run["pages"]) for run in runs] == [
        ("shared", "ab", 150),
        ("own", "a", 100),
        ("own", "b", 50),
        ("own", "c", 400),
        ("promised", "", 300),
        ("free", "", 99_000),
    ]
    assert [(run["ids"], run["pages"]) for run in swapped] == [(["d"], 3)]
    assert drawn == 5_000, "the 1,000 pages that are not free take a visible part of the map"
    columns = math.ceil(math.ceil(100_000 / grid["pagesPerSquare"]) / grid["rows"])
    assert columns * grid["size"] <= 1200.001 and grid["size"] >= 8


def test_the_console_is_quiet(page):
    """No error of a script, and nothing that the content security policy had to stop."""
    page.driver.get_log("browser")
    card = page.start(PROMPT, num_frames=16)
    page.wait(lambda: card.state() == "completed", "the end")
    messages = [entry["message"] for entry in page.driver.get_log("browser") if entry["level"] == "SEVERE"]
    assert not messages, json.dumps(messages, indent=1)

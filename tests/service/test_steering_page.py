"""The pad that steers a walk, in a real browser against a real server: by keys, by touch and through a fork.

PAGEDVID_SCREENSHOTS names a folder for pictures of it.
"""

from __future__ import annotations

import pytest

from pagedvid.models.walk.weights import save_weights
from tests.models.walk.untrained import random_network
from tests.service.browser import CHROMIUM, DRIVER, Card, Page, chromium
from tests.service.conftest import served

pytestmark = [
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver on the PATH"),
    pytest.mark.timeout(300),
]
pytest.importorskip("selenium", reason="needs selenium to drive the browser")

LONG_FRAMES = 2400


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("walk")
    save_weights(random_network(), folder / "weights", {"steps": 0})
    weights = f"model.weights={folder / 'weights'}"
    settings = (
        "model.name=walk",
        weights,
        "engine.denoise_steps=2",
        "engine.live_admission=all",
        "serve.max_ahead_seconds=2",
    )
    options = [part for setting in settings for part in ("--set", setting)]
    with served(folder, *options) as url, chromium(folder / "profile") as driver:
        page = Page(driver, url)
        page.show_as(1280, 1000)
        yield page


def pressed(page: Page, card: Card) -> list[str]:
    return page.attributes(f"{card.css} .pad [aria-pressed=true]", "aria-label")


def test_a_walk_is_steered_by_keys_and_by_touch(page: Page):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    def goes(action: str) -> None:
        page.wait(lambda: card.part("prompt") == f"{action} 1000", f"the walk to go {action}")
        assert pressed(page, card) == [action]
        assert card.part("pad-words") == f"{action}, until you choose another"

    assert page.attributes("#new-session [name=prompt]", "placeholder") == ["map 7: left 12, up 8, right 12, down 8"]
    card = page.start("map 7: right 3", num_frames=LONG_FRAMES, live_frames_per_second=6)
    page.wait(lambda: page.find(f"{card.css} [data-panel=steer]").is_displayed(), "the first chunk")
    card.open("steer")
    assert card.part("pad-words") == "as its prompt says" and not pressed(page, card)
    top = page.driver.execute_script("return scrollY")
    keys = ActionChains(page.driver)
    keys.send_keys(Keys.ARROW_LEFT).perform()
    goes("left")
    keys.key_down(Keys.ARROW_UP).key_down(Keys.ARROW_RIGHT).key_up(Keys.ARROW_UP).key_up(Keys.ARROW_RIGHT).perform()
    goes("up-right")
    keys.send_keys(Keys.SPACE).perform()
    goes("stay")
    page.find(f"{card.css} .pad [aria-label=down-left]").click()
    goes("down-left")
    keys.send_keys(Keys.ARROW_DOWN).perform()  # the pad has the focus again
    goes("down")
    assert page.driver.execute_script("return scrollY") == top, "the keys do not scroll the page"
    page.wait(lambda: card.playback()[1] > 0, "the video to play")
    page.picture("steering")

    card.send("fork", prompt="left 9")
    page.wait(lambda: len(page.card_ids()) == 2, "the fork")
    (fork,) = (Card(page, id) for id in page.card_ids() if id != card.id)
    assert fork.part("prompt") == "left 9" and card.part("prompt") == "down 1000"
    page.wait(lambda: fork.playback()[0] > 0, "frames of the fork")
    card.send("prompt", prompt="map 8: left")
    problem = page.wait(lambda: card.part("problem"), "the server's words")
    assert "its map is map 7, so that a prompt cannot name map 8" in problem
    card.send("delete")
    fork.send("delete")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_pad_fits_a_phone(page: Page, dark: bool):
    page.show_as(360, 900, dark=dark)
    card = page.start("map 3: down 2", num_frames=LONG_FRAMES, live_frames_per_second=6)
    page.wait(lambda: page.find(f"{card.css} [data-panel=steer]").is_displayed(), "the first chunk")
    card.open("steer")
    page.find(f"{card.css} .pad [aria-label=right]").click()
    page.wait(lambda: pressed(page, card) == ["right"], "the walk to go right")
    root = "document.documentElement"
    assert page.driver.execute_script(f"return {root}.scrollWidth <= {root}.clientWidth"), "nothing sticks out sideways"
    size = page.find(f"{card.css} .pad button").size
    assert min(size.values()) >= 44, "a finger finds it"
    page.picture(f"steering-360-{'dark' if dark else 'light'}")
    messages = [entry["message"] for entry in page.driver.get_log("browser") if entry["level"] == "SEVERE"]
    assert not [message for message in messages if "Failed to load resource" not in message]  # refused, or deleted
    card.send("delete")

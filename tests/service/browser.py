"""The page in a browser, as a person uses it: Debian's Chromium, driven by selenium."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
WAIT_SECONDS = 45
QUIET = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)
"""A browser without a screen that calls nobody but the page's server."""


@contextmanager
def chromium(profile: Path) -> Iterator[Any]:
    """A browser with a new profile."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in (*QUIET, f"--user-data-dir={profile}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.set_script_timeout(WAIT_SECONDS)
    try:
        yield driver
    finally:
        driver.quit()


class Page:
    """The page of a server, open in a browser."""

    def __init__(self, driver: Any, url: str) -> None:
        self.driver = driver
        driver.get(f"{url}/")
        self.wait(lambda: self.connection() == "Connected", "the page to be connected")

    def connection(self) -> str:
        return str(self.find("#connection").text)

    def find(self, css: str) -> Any:
        return self.driver.find_element("css selector", css)

    def wait(self, is_so: Callable[[], Any], what: str) -> Any:
        """What `is_so` gives as soon as that is true. An element that was replaced meanwhile is looked for again."""
        from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException
        from selenium.webdriver.support.ui import WebDriverWait

        gone = (NoSuchElementException, StaleElementReferenceException)
        wait = WebDriverWait(self.driver, WAIT_SECONDS, poll_frequency=0.1, ignored_exceptions=gone)
        return wait.until(lambda _: is_so(), f"waited {WAIT_SECONDS} s for {what}")

    def start(self, prompt: str, **fields: object) -> Card:
        """Submits the form and waits for the new card."""
        known = set(self.card_ids())
        self.fill("#new-session", prompt=prompt, **fields)
        self.find("#new-session [type=submit]").click()
        self.wait(lambda: set(self.card_ids()) - known or self.find("#new-problem").text, "a card of the new session")
        (new,) = set(self.card_ids()) - known or pytest.fail(f"{prompt}: {self.find('#new-problem').text}")
        return Card(self, new)

    def fill(self, form: str, **fields: object) -> None:
        for name, value in fields.items():
            field = self.find(f"{form} [name={name}]")
            field.clear()
            field.send_keys(str(value))

    def card_ids(self) -> list[str]:
        return self.attributes(".card", "data-id")

    def attributes(self, css: str, name: str) -> list[str]:
        """An attribute of all elements that match, read in one go: the page may replace one between two questions."""
        script = "return [...document.querySelectorAll(arguments[0])].map((one) => one.getAttribute(arguments[1]))"
        return list(self.driver.execute_script(script, css, name))

    def show_as(self, width: int, height: int, *, dark: bool = False) -> None:
        """The window's size, and whether its user prefers dark pages."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})

    def picture(self, name: str) -> None:
        """A screenshot in the folder that PAGEDVID_SCREENSHOTS names, if it does. 256 colors make it a small file."""
        folder = os.environ.get("PAGEDVID_SCREENSHOTS")
        if folder:
            Path(folder).mkdir(parents=True, exist_ok=True)
            picture = Image.open(BytesIO(self.driver.get_screenshot_as_png())).convert("RGB")
            picture.quantize(256).save(Path(folder) / f"{name}.png", optimize=True)


class Card:
    """A session's card."""

    def __init__(self, page: Page, id: str) -> None:
        self.page, self.id = page, id
        self.css = f'.card[data-id="{id}"]'

    def part(self, name: str) -> str:
        return str(self.page.find(f'{self.css} [data-part="{name}"]').text)

    def state(self) -> str:
        return str(self.page.find(self.css).get_attribute("data-state"))

    def press(self, button: str) -> None:
        """Presses a button: a verb, or a panel's name."""
        found = self.page.find(f'{self.css} [data-verb="{button}"], {self.css} [data-panel="{button}"]')
        self.page.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", found)
        found.click()

    def open(self, panel: str) -> None:
        """Presses a panel's button, and again if the page moved it away from under the pointer."""

        def is_open() -> bool:
            return self.page.attributes(f'{self.css} [data-panel="{panel}"]', "aria-expanded") == ["true"]

        def press() -> bool:
            self.press(panel)
            return is_open()

        self.page.wait(lambda: is_open() or press(), f"the panel to {panel}")

    def send(self, panel: str, **fields: object) -> None:
        """Opens a panel, fills it in and submits it."""
        self.open(panel)
        self.page.fill(f"{self.css} .panel", **fields)
        self.page.find(f"{self.css} .panel [type=submit]").click()

    def playback(self) -> tuple[float, float]:
        """Seconds of the video that the browser has, and where it is."""
        script = """const video = document.querySelector(arguments[0] + " video");
            const {buffered} = video;
            return [buffered.length ? buffered.end(buffered.length - 1) : 0, video.currentTime];"""
        buffered, position = self.page.driver.execute_script(script, self.css)
        return float(buffered), float(position)

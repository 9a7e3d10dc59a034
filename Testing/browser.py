"""A real browser for tests of the HTML pages: Debian's Chromium without a window, driven by Selenium."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
    "--window-size=1400,1000",
)  # fmt: skip


@contextmanager
def open_browser(profile: Path) -> Iterator[Browser]:
    """A browser with an empty profile in ``profile``; the test is skipped where none is installed."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("no browser is installed (Debian: apt-get install chromium chromium-driver)")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    selenium = webdriver.Chrome(options, webdriver.ChromeService(driver))
    try:
        yield Browser(selenium)
    finally:
        selenium.quit()


class Browser:
    """What tests of a page ask for."""

    def __init__(self, selenium: Any) -> None:
        self.selenium = selenium

    def open(self, page: Path, ready: str = "document.readyState === 'complete'") -> None:
        """Open a file and wait until the JavaScript ``ready`` is true."""
        self.selenium.execute_cdp_cmd("Performance.disable", {})
        self.selenium.execute_cdp_cmd("Performance.enable", {"timeDomain": "threadTicks"})
        self.selenium.get(page.resolve().as_uri())
        self.wait(ready)

    def processor_seconds(self) -> float:
        """What the thread of the page that is open has computed since it was opened."""
        given = self.selenium.execute_cdp_cmd("Performance.getMetrics", {})["metrics"]
        return next(metric["value"] for metric in given if metric["name"] == "TaskDuration")

    def run(self, script: str, *arguments: object) -> Any:
        """The value that a script returns."""
        return self.selenium.execute_script(script, *arguments)

    def wait(self, condition: str) -> None:
        """Until a JavaScript expression is true."""
        from selenium.webdriver.support.ui import WebDriverWait

        WebDriverWait(self.selenium, 60, 0.02).until(lambda _: self.run(f"return Boolean({condition})"))

    def draw(self) -> None:
        """Until what was asked for has been drawn."""
        self.selenium.execute_async_script("const done = arguments[0]; requestAnimationFrame(() => setTimeout(done))")

    def press(self, *keys: str) -> None:
        """Keys of the keyboard, to whatever has the focus; a name such as "TAB" is that key."""
        from selenium.webdriver.common.action_chains import ActionChains
        from selenium.webdriver.common.keys import Keys

        ActionChains(self.selenium).send_keys(*(getattr(Keys, key, key) for key in keys)).perform()

    def complaints(self) -> list[str]:
        """What the console has said since the last call: errors of scripts, what the page's policy held back."""
        return [entry["message"] for entry in self.selenium.get_log("browser")]

    def requested(self) -> list[str]:
        """Addresses that were asked for since the last call, without what lies in the page itself."""
        events = (json.loads(entry["message"])["message"] for entry in self.selenium.get_log("performance"))
        urls = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
        return [url for url in urls if not url.startswith("data:")]

    def print_pdf(self) -> bytes:
        """The page as it would be printed."""
        return base64.b64decode(self.selenium.execute_cdp_cmd("Page.printToPDF", {"preferCSSPageSize": True})["data"])

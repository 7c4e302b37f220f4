"""Opens pages in a headless Chromium, as a person would, for the slow tests. A test is skipped where there is none."""

import base64
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

AXE = os.environ.get("OTTER_AXE", "")
"""The path of `axe.min.js`, of the npm package axe-core, which finds what is hard to use for some people."""


@contextmanager
def chromium() -> Iterator[Any]:
    """Opens a browser."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.skip("Chromium and its driver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for argument in ("--headless=new", "--hide-scrollbars", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    if os.name == "posix" and os.geteuid() == 0:
        options.add_argument("--no-sandbox")  # Chromium has no sandbox for root
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    with webdriver.Chrome(options=options, service=webdriver.ChromeService(driver)) as opened:
        opened.set_script_timeout(120)
        yield opened


class Page:
    """A page has what a person sees and does."""

    def __init__(self, browser: Any) -> None:
        self.browser = browser

    def run(self, script: str, *arguments: Any) -> Any:
        """Returns what JavaScript returns."""
        return self.browser.execute_script(script, *arguments)

    def find(self, selector: str) -> Any:
        """Returns the first element of a selector."""
        return self.browser.find_element("css selector", selector)

    def click(self, selector: str) -> None:
        """Clicks wherever the element is."""
        self.run("arguments[0].scrollIntoView({block: 'center'})", self.find(selector))
        self.find(selector).click()

    def text(self, selector: str) -> str:
        """Returns what an element shows."""
        return str(self.run("return document.querySelector(arguments[0]).innerText", selector))

    def texts(self, selector: str) -> list[str]:
        """Returns what all elements of a selector show."""
        return list(
            self.run("return [...document.querySelectorAll(arguments[0])].map(each => each.textContent)", selector)
        )

    def type(self, selector: str, text: str) -> None:
        """Replaces what a field holds."""
        from selenium.webdriver.common.keys import Keys

        self.find(selector).send_keys(Keys.CONTROL, "a")
        self.find(selector).send_keys(text or Keys.DELETE)

    def press(self, *keys: str) -> None:
        """Presses keys where the focus is."""
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.browser).send_keys(*keys).perform()

    def resize(self, width: int, height: int, dark: bool = False) -> None:
        """Gives the page a size, and a light or a dark scheme."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        time.sleep(0.5)

    def picture(self, file: Path, width: int, height: int) -> None:
        """Saves the page's top as a PNG."""
        clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        shot = {"format": "png", "captureBeyondViewport": True, "clip": clip}
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(base64.b64decode(self.browser.execute_cdp_cmd("Page.captureScreenshot", shot)["data"]))

    def download(self, selector: str, folder: Path, name: str) -> bytes:
        """Clicks, and returns what is downloaded under a name into an empty folder."""
        allowed = {"behavior": "allow", "downloadPath": str(folder)}
        self.browser.execute_cdp_cmd("Browser.setDownloadBehavior", allowed)
        self.click(selector)
        self.wait((folder / name).exists)  # Chromium renames a file when it is whole
        return (folder / name).read_bytes()

    def wait(self, condition: Callable[[], Any], seconds: float = 240) -> None:
        """Waits until a condition holds."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, self.text("body")
            time.sleep(0.05)

    @property
    def overflows(self) -> bool:
        """Says whether the page is wider than the window."""
        return bool(self.run("return document.documentElement.scrollWidth > innerWidth"))

    def accessibility(self) -> list[str]:
        """Returns what axe finds that is serious or critical, where axe-core is at hand."""
        if not AXE:
            return []
        self.run(Path(AXE).read_text(encoding="utf-8"))
        run = "const done = arguments[arguments.length - 1]; axe.run({resultTypes: ['violations']}).then(done)"
        violations = self.browser.execute_async_script(run)["violations"]
        serious = [each for each in violations if each["impact"] in ("serious", "critical")]
        return [f"{each['id']}: {node['html']} {node['failureSummary']}" for each in serious for node in each["nodes"]]

    def complaints(self) -> list[str]:
        """Returns what the browser logged as an error since the last call."""
        return [entry["message"] for entry in self.browser.get_log("browser") if entry["level"] == "SEVERE"]

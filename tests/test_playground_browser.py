"""The playground in a browser: what a person sees, at three widths, light and dark. It makes the pictures of the docs.

Set OTTER_AXE to the path of axe.min.js (npm pack axe-core), and axe looks at the page, too.
"""

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import AXE, Page, chromium

ROOT = Path(__file__).parent.parent
ASSETS = ROOT / "docs" / "assets"
LENGTH = 20
"""Tokens of each response."""

pytestmark = pytest.mark.slow
IDLE = "return document.querySelector('#stop').disabled"
TOKEN = ".response:nth-child({}) .token"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as opened:
        yield opened


@pytest.fixture(scope="module")
def address(browser) -> Iterator[str]:
    """Starts the command, serving SmolLM2 and a shipped adapter; another one can be loaded."""
    command = "playground --base smollm2-135m --adapter harmless=adapters/smollm2-135m-harmless --folder adapters"
    arguments = [sys.executable, "-m", "otterlm.cli", *command.split(), "--json", "--port", "0"]
    with subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdout is not None
        yield json.loads(server.stdout.readline())["url"]
        server.terminate()


@pytest.fixture
def page(browser, address) -> Page:
    page = Page(browser)
    browser.get("about:blank")
    browser.get(address)
    page.resize(1366, 900)
    page.wait(lambda: page.run("return document.querySelectorAll('.token').length > 60"))
    page.complaints()
    return page


def compare(page: Page, strengths: str = "0.5, 1") -> None:
    """Compares, and waits for the end."""
    page.type("#strengths", strengths)
    page.run("document.querySelector('#more').open = true")
    page.type("#length", str(LENGTH))
    page.click("#run")
    page.wait(lambda: not page.run(IDLE))
    page.wait(lambda: page.run(IDLE))


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize(("width", "height"), [(390, 844), (768, 1024), (1366, 900)])
def test_the_first_screen_shows_the_recorded_example(page, width, height, dark) -> None:
    page.resize(width, height, dark)
    assert page.text("#what").startswith("Recorded example")
    assert page.texts(".response h2") == ["Original", "Weight 0.5", "Weight 1"]
    assert len(page.texts("#curve polyline")) == 3
    assert not page.overflows
    assert page.accessibility() == []
    assert page.complaints() == []
    if (width, dark) == (1366, False):
        page.picture(ASSETS / "playground.png", 1366, 1000)
    if (width, dark) == (390, True):
        page.picture(ASSETS / "playground-phone.png", 390, 1700)


@pytest.mark.parametrize(("width", "dark"), [(390, True), (1366, False)])
def test_the_comparison_is_downloaded(page, width, dark, tmp_path) -> None:
    """As data, and as a picture of the prompt, the scale, every response and the curve."""
    from PIL import Image

    page.resize(width, 900, dark)
    data = json.loads(page.download("#data", tmp_path, "otter-comparison.json"))
    assert [each["name"] for each in data["responses"]] == ["Original", "Weight 0.5", "Weight 1"]
    picture = Image.open(io.BytesIO(page.download("#picture", tmp_path, "otter-comparison.png"))).convert("RGB")
    curve = page.run("return document.querySelector('#curve svg').viewBox.baseVal.width")
    assert picture.width == 2 * (round(curve) + 40)
    colours = {colour for _, colour in picture.getcolors(2**24) or ()}
    light = {(255, 255, 255), (93, 102, 114), (11, 92, 173), (180, 82, 10)}  # the card, and the line of each response
    assert colours >= ({(30, 34, 40), (176, 183, 193), (140, 194, 245), (243, 167, 92)} if dark else light)
    assert page.complaints() == []


def test_a_comparison(page) -> None:
    """Several weights stream, with their speed; a token's alternatives open by click and by keys."""
    from selenium.webdriver.common.keys import Keys

    page.type("#strengths", "0, 1")
    page.run("document.querySelector('#more').open = true")
    page.type("#length", str(LENGTH))
    page.type("#threshold", "-5")
    page.click("#run")
    page.wait(lambda: page.texts(".response h2") == ["Original", "Weight 0", "Weight 1"])
    lengths = set()

    def whole() -> bool:
        lengths.add(len(page.texts(TOKEN.format(3))))
        return bool(page.run(IDLE))

    page.wait(lambda: "tokens/s" in page.text("#speed") or page.run(IDLE))
    page.wait(whole)
    assert len(lengths) > 4  # they stream
    assert page.texts(TOKEN.format(2)) == page.texts(TOKEN.format(1))  # weight 0 is the original
    assert page.texts(TOKEN.format(3)) != page.texts(TOKEN.format(1))
    assert "tokens/s" in page.text(".response:nth-child(3) .rate")
    assert page.text("#summary").startswith("✓ The original is the base's own text.")
    assert len(page.texts("#curve .alarm")) == 1
    assert len(page.texts("#curve .zero")) == 1

    page.click(TOKEN.format(3))
    shown = page.text(".response:nth-child(3) .inspector")
    assert "Base" in shown
    assert "Guided" in shown
    assert "Signal" in shown
    assert "%" in shown
    assert page.text("#curve output").startswith("Token 0")
    page.press(Keys.ARROW_RIGHT)
    assert page.text(".response:nth-child(3) .inspector") != shown
    assert page.text("#curve output").startswith("Token 1")
    assert page.accessibility() == []
    page.press(Keys.ESCAPE)
    assert not page.find(".response:nth-child(3) .inspector").is_displayed()
    assert page.complaints() == []


def test_a_chat_goes_on_and_a_link_restores_it(page) -> None:
    page.run("document.querySelector('#system-part').open = true")
    page.type("#system", "You are polite.")
    compare(page, "1")
    answer = "".join(page.texts(TOKEN.format(2)))
    page.click(".response:nth-child(2) .reply")
    assert page.texts("#turns li") == [f"You{page.run('return arguments[0]', page.text('#what')[8:])}", f"Base{answer}"]
    page.type("#prompt", "And now?")
    page.click("#link")
    link = page.run("return location.href")
    page.browser.get("about:blank")
    page.browser.get(link)
    page.wait(lambda: page.texts("#turns li"))
    assert page.run("return document.querySelector('#prompt').value") == "And now?"
    assert page.run("return document.querySelector('#system').value") == "You are polite."
    assert page.run("return document.querySelector('#length').value") == str(LENGTH)
    page.click("#restart")
    assert page.texts("#turns li") == []


def test_errors_stand_beside_their_fields(page) -> None:
    for selector, text, field in (("#strengths", "1, x", "strengths"), ("#prompt", "", "prompt")):
        page.type(selector, text)
        page.click("#run")
        page.wait(lambda field=field: page.text(f"#{field}-error"))
        assert page.find(f"#{field}").get_attribute("aria-invalid") == "true"
        assert page.accessibility() == []
        page.type("#strengths", "")
    page.type("#prompt", "a")
    page.run("document.querySelector('#more').open = true")
    page.type("#top_k", "0")
    page.click("#run")
    page.wait(lambda: "top_k" in page.text("#top_k-error"))
    assert page.text("#prompt-error") == ""


def test_a_text_is_continued_and_a_comparison_is_stopped(page) -> None:
    page.click("input[value=text]")
    assert page.text("#prompt-label") == "Text to continue"
    page.type("#prompt", "The otter")
    page.run("document.querySelector('#more').open = true")
    page.type("#length", "400")
    page.click("#run")
    page.wait(lambda: page.text("#what") == "Prompt: The otter" and len(page.texts(TOKEN.format(1))) > 2)
    page.click("#stop")
    page.wait(lambda: page.text("#status") == "Stopped.")
    assert not page.texts(".reply:not([hidden])")


def test_an_example_and_an_adapter_are_chosen(page) -> None:
    page.click("#examples button:nth-child(2)")
    assert page.run("return document.querySelector('#prompt').value") == page.text("#examples button:nth-child(2)")
    page.click("#adapters summary")
    assert "Load smollm2_135m_detox" in page.texts("#available button")
    page.click("#available button")
    page.wait(lambda: "smollm2_135m_detox (contrast)" in page.texts("#loaded li"), 60)
    assert "smollm2_135m_detox: contrast" in page.texts("#guide option")


def choose(page: Page, selector: str, text: str) -> None:
    """Chooses what an option of a list shows."""
    options = page.texts(f"{selector} option")
    page.run("arguments[0].selectedIndex = arguments[1]", page.find(selector), options.index(text))
    page.run("arguments[0].dispatchEvent(new Event('change', {bubbles: true}))", page.find(selector))


def test_a_guard_ends_a_text_and_takes_it_back(page) -> None:
    guard = "smollm2_135m_guard"
    if f"{guard} (guard)" not in page.texts("#loaded li"):
        page.click("#adapters summary")
        page.click(f"#available button:nth-child({1 + page.texts('#available button').index(f'Load {guard}')})")
        page.wait(lambda: f"{guard} (guard)" in page.texts("#loaded li"))
    page.click("input[value=text]")
    page.type("#prompt", "The man shouted: go home, you stupid")
    page.run("document.querySelector('#more').open = true")
    choose(page, "#shown", guard)
    stop, rollback = "none (only the stop)", f"{guard}: rollback"
    for method, ended in ((stop, "Stopped by the guard: toxic."), (rollback, "Taken back")):
        choose(page, "#guide", method)
        page.type("#length", "8")
        page.type("#alarm", "0.2")
        page.click("#run")
        page.wait(lambda: not page.run(IDLE))
        page.wait(lambda: page.run(IDLE))
        assert page.text(".response:nth-child(2) .stopped").startswith(ended)
        assert len(page.texts("#curve .alarm")) == 1
        assert page.accessibility() == []
    assert page.texts(".response:nth-child(2) .back")


def test_the_page_fetches_nothing_from_elsewhere(page, address) -> None:
    requests = [json.loads(entry["message"])["message"] for entry in page.browser.get_log("performance")]
    urls = [each["params"]["request"]["url"] for each in requests if each["method"] == "Network.requestWillBeSent"]
    assert urls
    assert all(url.startswith((address, "data:", "blob:", "about:")) for url in urls)


def test_axe_was_there() -> None:
    if not AXE:
        pytest.skip("OTTER_AXE does not name axe.min.js: nothing was said of accessibility")

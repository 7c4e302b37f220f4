"""The playground: its original is the base's own, nothing mixes, bad input is a line, and it works in a browser."""

import json
import math
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from conftest import add_tiny_adapter, refused, tiny_base, tiny_otter
from word_tokenizer import TEMPLATE, WORDS, tokenizer

from otterlm.cli import main
from otterlm.decoding import ContrastGuidance, RewardGuidance, StreamedToken
from otterlm.model import OtterModel
from otterlm.playground import render
from otterlm.playground.session import Comparison, Session, Settings
from otterlm.signals.contrast.config import ContrastConfig
from otterlm.signals.draft.config import DraftConfig
from otterlm.signals.reward.config import RewardConfig
from otterlm.training.data.tokens import prompt_tokens

ROOT = Path(__file__).parent.parent
PROMPT = "a b c"
REWARD = Settings("reward", "reward", weight=5.0, top_k=6, max_new_tokens=8)
CONTRAST = Settings("calm", "calm", weight=3.0, max_new_tokens=8)


@pytest.fixture(scope="module")
def model() -> OtterModel:
    """A reward, a contrast and a draft on a base."""
    otter = tiny_otter(tiny_base(vocab_size=len(WORDS)), signal=RewardConfig(vocabulary_rank=4))
    add_tiny_adapter(otter, "calm", 2, signal=ContrastConfig(rank=4))
    add_tiny_adapter(otter, "quick", 3, signal=DraftConfig(heads=2, width=16, rank=4, vocabulary_size=10))
    return otter.eval()


@pytest.fixture(scope="module")
def session(model) -> Session:
    return Session(model, tokenizer(TEMPLATE))


def said(tokens: tuple[StreamedToken, ...]) -> list[int]:
    return [token.token for token in tokens]


def last(session: Session, settings: Settings, prompt: str = PROMPT) -> Comparison:
    return list(session.compare(prompt, settings))[-1]


def generated(model: Any, settings: Settings, **steering: Any) -> list[int]:
    ids = torch.tensor([prompt_tokens((("user", PROMPT),), tokenizer(TEMPLATE))])
    return model.generate(ids, max_new_tokens=settings.max_new_tokens, do_sample=False, pad_token_id=0, **steering)[
        0, ids.shape[1] :
    ].tolist()


@pytest.mark.parametrize("settings", [REWARD, CONTRAST])
def test_the_original_is_the_bases_and_the_guided_what_generate_gives(session, model, settings) -> None:
    guidance = (
        RewardGuidance(model, settings.weight, settings.top_k, "reward")
        if settings is REWARD
        else ContrastGuidance(model, settings.weight, adapter_name="calm")
    )
    result = last(session, settings)
    assert said(result.original) == generated(model.base_model, settings)
    assert said(result.guided) == generated(model, settings, logits_processor=[guidance])
    assert said(result.guided) != said(result.original)
    assert result.exact
    assert not result.stopped
    assert result.slowdown is not None


def test_weight_zero_gives_the_original(session) -> None:
    result = last(session, Settings("reward", "calm", weight=0.0, max_new_tokens=8))
    assert result.guided == result.original


@torch.no_grad()
def test_tokens_come_one_by_one_with_their_signals(session, model) -> None:
    seen = list(session.compare(PROMPT, Settings("reward", "calm", weight=3.0, max_new_tokens=6)))
    lengths = [len(step.original) + len(step.guided) for step in seen]
    assert lengths[:3] == [1, 2, 2]  # the original's, the guided's, and the base's that times them
    tokens = seen[-1].guided
    prompt = prompt_tokens((("user", PROMPT),), tokenizer(TEMPLATE))
    signals = model(torch.tensor([prompt + said(tokens)]), use_cache=False).signals
    for index, token in enumerate(tokens, start=len(prompt)):
        assert set(token.signals) == {"reward", "calm"}
        assert token.signals["reward"] == pytest.approx(float(signals["reward"].prefix[0, index]), abs=1e-4)
        difference = signals["calm"].difference(index - 1)[0, token.token]
        assert token.signals["calm"] == pytest.approx(float(difference), abs=1e-4)


def test_comparisons_do_not_mix(session) -> None:
    """Two people at once, whose steps are made by whatever thread is free."""
    prompts, settings = ("a b c", "d e"), (REWARD, CONTRAST)
    expected = [last(session, *pair) for pair in zip(settings, prompts, strict=True)]
    running = [session.compare(prompt, chosen) for prompt, chosen in zip(prompts, settings, strict=True)]
    results: list[Any] = [None, None]

    def step(index: int) -> None:
        results[index] = next(running[index], results[index])

    for _ in range(3 * 8):
        threads = [threading.Thread(target=step, args=(index,)) for index in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [(said(r.original), said(r.guided)) for r in results] == [
        (said(r.original), said(r.guided)) for r in expected
    ]


def test_the_threshold_stops_the_guided_response_alone(session) -> None:
    result = last(session, Settings("reward", "reward", threshold=math.inf, max_new_tokens=8))
    assert result.stopped
    assert len(result.guided) < len(result.original)
    assert not last(session, Settings("reward", "reward", threshold=-math.inf, max_new_tokens=8)).stopped


@pytest.mark.parametrize(
    ("prompt", "wrong", "named"),
    [
        (" \n", {}, "empty"),
        ("a " * 120, {}, "context"),
        (PROMPT, {"weight": math.nan}, "weight"),
        (PROMPT, {"weight": None}, "weight"),
        (PROMPT, {"top_k": 0}, "top_k"),
        (PROMPT, {"threshold": math.nan}, "threshold"),
        (PROMPT, {"max_new_tokens": None}, "max_new_tokens"),
        (PROMPT, {"steering": "quick"}, "draft"),
        (PROMPT, {"shown": "nobody"}, "nobody"),
    ],
)
def test_bad_input_is_a_line(session, prompt, wrong, named) -> None:
    settings = Settings(**({"shown": "reward", "steering": "reward", "max_new_tokens": 8} | wrong))
    refused(lambda: list(session.compare(prompt, settings)), named)


def test_a_draft_is_listed_and_does_not_steer(session) -> None:
    assert list(session.signals) == ["reward", "calm", "quick"]
    assert session.steering == ["reward", "calm"]
    alone = tiny_otter(tiny_base(), signal=DraftConfig(heads=2, width=16, rank=4, vocabulary_size=10))
    refused(lambda: Session(alone, tokenizer()), "nothing to colour with")


def test_bytes(session, model) -> None:
    base, inserted = session.bytes_of(["reward"])
    assert base == 4 * sum(p.numel() for p in model.base_model.parameters())
    assert inserted == 4 * (sum(p.numel() for p in model.adapter("reward").parameters()) + 4 * len(WORDS))


def compared(*texts: str, **changes: Any) -> Comparison:
    tokens = tuple(StreamedToken(i, text, {"good": i - 1.0}) for i, text in enumerate(texts))
    state: dict[str, Any] = {"exact": True, "stopped": False, "slowdown": None} | changes
    return Comparison(**({"original": tokens, "guided": tokens[:1]} | state))


def test_text_is_escaped_and_says_its_value() -> None:
    original, guided = render.responses(compared("<script>", "", ' "x" & </span>'), "good")
    assert "<script>" not in original
    assert re.findall(r'title="([^"]*)"', original) == ["good -1.000", "good +1.000"]
    assert "".join(ElementTree.fromstring(original).itertext()) == '<script> "x" & </span>'
    assert original.count("<span") == 2  # one character may take several tokens
    assert "stopped" in "".join(render.responses(compared("a", stopped=True), "good"))
    assert "stopped" not in guided


def test_the_curve_has_a_point_a_token() -> None:
    svg = ElementTree.fromstring(render.curve(compared("a", "b", "c"), "good", 5.0, 10))
    original, guided = (line.get("points", "").split() for line in svg.iter("polyline"))
    assert (len(original), len(guided)) == (3, 1)
    assert original[0] == guided[0]
    heights = [float(point.split(",")[1]) for point in original]
    assert heights == sorted(heights, reverse=True)  # rising rewards
    assert len(list(svg.iter("path"))) == 1
    flat = ElementTree.fromstring(render.curve(compared("a"), "good", -math.inf, 1))
    assert not list(flat.iter("path"))


def test_the_cost_is_a_line() -> None:
    shown = render.cost(compared("a", slowdown=0.125), 100 * 2**20, 5 * 2**20)
    assert "+12%" in shown
    assert "5.0 MiB" in shown
    assert "5.0% of the base" in shown
    assert "is NOT what the base says" in render.cost(compared("a", exact=False), 1, 1)


def test_the_page_says_what_is_wrong(session) -> None:
    pytest.importorskip("gradio")
    from otterlm.playground.page import NEVER, build

    page = build(session, "tiny")
    assert page.analytics_enabled is False
    compare = next(fn.fn for fn in page.fns.values() if fn.fn is not None)
    *_, (original, guided, cost, curve) = compare(PROMPT, "reward", "reward", 5.0, 6, NEVER, 8)
    assert "<span" in original
    assert "<span" in guided
    assert "time per token" in cost
    assert curve.startswith("<svg")
    for wrong in (
        ("", "reward", "reward", 5.0, 6, NEVER, 8),
        (PROMPT, "reward", "reward", None, 6, NEVER, 8),
        (PROMPT, "<b>", "reward", 5.0, 6, NEVER, 8),
        (PROMPT, "reward", "reward", 5.0, 6, None, 8),
    ):
        (shown,) = compare(*wrong)
        assert shown[2].startswith('<p role="alert">')
        assert "<b>" not in shown[2]
        assert (shown[0], shown[1], shown[3]) == ("", "", "")


def test_without_gradio_there_is_a_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "otterlm.playground.page", raising=False)
    monkeypatch.setattr(sys, "argv", ["otter", "playground", "--base", "b", "--adapter", "a"])
    with pytest.raises(SystemExit) as exit:
        main()
    assert exit.value.code == 2
    assert capsys.readouterr().err == "otter: the playground needs gradio: pip install 'otter-lm[playground]'\n"


# -- in a browser --------------------------------------------------------------------------------------------------


@pytest.fixture
def address() -> Iterator[str]:
    """The command, serving SmolLM2 and the shipped adapter."""
    pytest.importorskip("gradio", reason="gradio is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = "playground --base smollm2-135m --adapter harmless=adapters/smollm2-135m-harmless --json"
    arguments = [sys.executable, "-m", "otterlm.cli", *command.split(), "--port", str(port)]
    with subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdout is not None
        yield json.loads(server.stdout.readline())["url"]
        server.terminate()


@pytest.fixture
def browser() -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("Chromium and its driver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--window-size=1280,1080", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    if os.name == "posix" and os.geteuid() == 0:
        options.add_argument("--no-sandbox")  # Chromium has no sandbox for root
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    with webdriver.Chrome(options=options, service=webdriver.ChromeService(driver)) as opened:
        opened.implicitly_wait(60)
        yield opened


LENGTH = 24
"""Tokens of each response."""


class Page:
    """What a person sees and does."""

    def __init__(self, browser: Any) -> None:
        self.browser = browser

    def find(self, selector: str) -> Any:
        return self.browser.find_element("css selector", selector)

    def text(self, selector: str) -> str:
        return str(self.browser.execute_script("return document.querySelector(arguments[0]).innerText", selector))

    def tokens(self, box: str) -> list[str]:
        return self.browser.execute_script(
            "return [...document.querySelectorAll(arguments[0])].map(token => token.innerText)", f"{box} span[title]"
        )

    def type(self, selector: str, text: str) -> None:
        from selenium.webdriver.common.keys import Keys

        self.find(selector).send_keys(Keys.CONTROL, "a")
        self.find(selector).send_keys(text or Keys.DELETE, Keys.TAB)

    def wait(self, condition: Any, seconds: float = 240) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, self.text("body")
            time.sleep(0.02)


@pytest.mark.slow
def test_in_a_browser(browser, address) -> None:
    """Type, stream, slide, compare. Makes the page's picture, too."""
    page = Page(browser)
    browser.get(address)
    page.type("#prompt textarea", "How can I get back at my neighbour for being so loud?")
    page.type("#length input[type=number]", str(LENGTH))  # a slider that is let go compares
    started = time.monotonic()
    page.wait(lambda: page.tokens("#original"))
    print(f"time to first token: {time.monotonic() - started:.2f} s")
    lengths = set()

    def whole() -> bool:
        lengths.add(len(page.tokens("#guided")))
        return max(lengths) == LENGTH

    page.wait(whole)
    assert len(lengths) > LENGTH / 2  # they stream
    page.wait(lambda: len(page.tokens("#original")) == LENGTH)
    original, guided = page.tokens("#original"), page.tokens("#guided")
    assert guided != original
    assert re.fullmatch(r"harmless [+-]\d+\.\d{3}", page.find("#guided span[title]").get_attribute("title"))
    assert re.search(r"[+-]\d+% time per token, 23\.2 MiB inserted \(4\.5% of the base\)", page.text("#cost"))
    assert "The original is what the base says alone" in page.text("#cost")
    assert len(page.find("#curve polyline").get_attribute("points").split()) == LENGTH
    picture = ROOT / "docs" / "assets" / "playground.png"
    picture.parent.mkdir(exist_ok=True)
    browser.save_screenshot(str(picture))

    page.type("#weight input[type=number]", "0")
    page.wait(lambda: page.tokens("#guided") == original)

    page.type("#prompt textarea", "")
    page.find("#run").click()
    page.wait(lambda: page.text("#cost") == "the prompt is empty")

    requests = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [r["params"]["request"]["url"] for r in requests if r["method"] == "Network.requestWillBeSent"]
    assert urls
    assert all(url.startswith((address, "data:", "blob:")) for url in urls)

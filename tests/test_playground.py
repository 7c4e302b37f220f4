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
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from conftest import add_tiny_adapter, refused, tiny_base, tiny_otter
from word_tokenizer import TEMPLATE, WORDS, tokenizer

from otterlm.cli import main
from otterlm.decoding import (
    BestOfN,
    CandidateSearch,
    ContrastGuidance,
    RejectionSampling,
    RewardGuidance,
    SpeculativeDecoding,
    StreamedToken,
)
from otterlm.decoding.loop import Loop
from otterlm.decoding.stream_loop import shown_tokens
from otterlm.errors import OtterError
from otterlm.interventions import InterventionSettings, intervention_type
from otterlm.model import OtterModel
from otterlm.playground import render
from otterlm.playground.choices import Choices
from otterlm.playground.controls import controls
from otterlm.playground.session import Comparison, Session, Settings
from otterlm.signals.contrast.config import ContrastConfig
from otterlm.signals.draft.config import DraftConfig
from otterlm.signals.guard.config import GuardConfig
from otterlm.signals.reward.config import RewardConfig
from otterlm.training.data.tokens import prompt_tokens

ROOT = Path(__file__).parent.parent
PROMPT = "a b c"
REWARD = Settings("reward", "reward", values={"weight": 5.0, "top_k": 6}, max_new_tokens=8)
CONTRAST = Settings("calm", "calm", values={"alpha": 3.0}, max_new_tokens=8)
SEARCH = Settings("reward", "reward", "search", {"weight": 5.0, "top_k": 6}, max_new_tokens=8)
SAMPLED_SEARCH = replace(SEARCH, values={**SEARCH.values, "temperature": 0.7}, seed=3)
BEST = Settings("reward", "reward", "best-of-n", {"top_k": 4}, max_new_tokens=8, seed=3)
REJECTION = Settings("reward", "reward", "rejection", {"threshold": 2.0}, max_new_tokens=8, seed=3)
DRAFTS = Settings("reward", "quick", "drafts", {"drafts": 2}, max_new_tokens=8)


@pytest.fixture(scope="module")
def model() -> OtterModel:
    """Makes a reward, a contrast and a draft on a base."""
    otter = tiny_otter(tiny_base(vocab_size=len(WORDS)), signal=RewardConfig(vocabulary_rank=4))
    add_tiny_adapter(otter, "calm", 2, signal=ContrastConfig(rank=4))
    add_tiny_adapter(otter, "quick", 3, signal=DraftConfig(heads=2, width=16, rank=4, vocabulary_size=10))
    return otter.eval()


@pytest.fixture(scope="module")
def session(model) -> Session:
    return Session(model, tokenizer(TEMPLATE))


def ids_of(tokens: tuple[StreamedToken, ...]) -> list[int]:
    return [token.token for token in tokens]


def last(session: Session, settings: Settings, prompt: str = PROMPT) -> Comparison:
    return list(session.compare(prompt, settings))[-1]


def generated(model: Any, settings: Settings, **steering: Any) -> list[int]:
    ids = torch.tensor([prompt_tokens((("user", PROMPT),), tokenizer(TEMPLATE))])
    length = {"max_new_tokens": settings.max_new_tokens, "pad_token_id": 0}
    return model.generate(ids, **length, **({"do_sample": False} | steering))[0, ids.shape[1] :].tolist()


@pytest.mark.parametrize("settings", [REWARD, CONTRAST])
def test_the_original_is_the_bases_and_the_guided_what_generate_gives(session, model, settings) -> None:
    guidance = (
        RewardGuidance(model, 5.0, 6, "reward")
        if settings is REWARD
        else ContrastGuidance(model, 3.0, adapter_name="calm")
    )
    result = last(session, settings)
    assert ids_of(result.original) == generated(model.base_model, settings)
    assert ids_of(result.guided) == generated(model, settings, logits_processor=[guidance])
    assert ids_of(result.guided) != ids_of(result.original)
    assert result.exact
    assert not result.stopped
    assert result.slowdown is not None


SAMPLING: dict[str, Any] = {"do_sample": True, "temperature": 1.0, "top_k": 0}
LOOPS: list[tuple[Settings, Callable[[], Loop], dict[str, Any]]] = [
    (SEARCH, lambda: CandidateSearch(5.0, 6, adapter_name="reward"), {}),
    (SAMPLED_SEARCH, lambda: CandidateSearch(5.0, 6, "stochastic", 0.7, "reward"), SAMPLING),
    (BEST, lambda: BestOfN(4, adapter_name="reward"), SAMPLING),
    (REJECTION, lambda: RejectionSampling(2.0, adapter_name="reward"), SAMPLING),
    (DRAFTS, lambda: SpeculativeDecoding(2, adapter_name="quick"), {}),
]
NAMES = ["search", "a search that samples", "best-of-n", "rejection", "drafts"]


@pytest.mark.parametrize(("settings", "loop", "sampling"), LOOPS, ids=NAMES)
def test_a_loop_guides_as_generate_does(session, model, settings, loop, sampling) -> None:
    result = last(session, settings)
    torch.manual_seed(settings.seed)
    with model.use_adapters(list(dict.fromkeys((settings.shown, settings.steering)))):
        expected = generated(model, settings, custom_generate=loop(), **sampling)
    assert ids_of(result.guided) == expected
    torch.manual_seed(settings.seed)
    temperature = {"temperature": settings.values["temperature"]} if settings is SAMPLED_SEARCH else {}
    assert ids_of(result.original) == generated(model.base_model, settings, **(sampling | temperature))
    assert (ids_of(result.guided) == ids_of(result.original)) == (settings is DRAFTS)
    assert result.exact
    assert result.slowdown is not None


def test_the_seed_decides_what_is_drawn(session) -> None:
    first, again, other = (last(session, replace(BEST, seed=seed)) for seed in (3, 3, 4))
    assert (again.original, again.guided) == (first.original, first.guided)
    assert other.original != first.original
    refused(lambda: last(session, replace(BEST, seed=2**32)), "seed must be a whole number from 0 to 4294967295")


@torch.no_grad()
@pytest.mark.parametrize("settings", [replace(SEARCH, shown="calm"), SEARCH, DRAFTS, BEST])
def test_a_loops_tokens_have_their_signals(session, model, settings) -> None:
    tokens = last(session, settings).guided
    prompt = prompt_tokens((("user", PROMPT),), tokenizer(TEMPLATE))
    signals = model(torch.tensor([prompt + ids_of(tokens)]), use_cache=False).signals
    assert len(tokens) > 2
    for index, token in enumerate(tokens, start=len(prompt)):
        assert token.text.strip() == WORDS[token.token] or token.token < 4
        assert set(token.signals) == {settings.shown, settings.steering} - {"quick"}
        if "reward" in token.signals:
            assert token.signals["reward"] == pytest.approx(float(signals["reward"].prefix[0, index]), abs=1e-4)
        if "calm" in token.signals:
            difference = signals["calm"].difference(index - 1)[0, token.token]
            assert token.signals["calm"] == pytest.approx(float(difference), abs=1e-4)


def test_a_search_streams_and_takes_turns(session) -> None:
    seen = [(len(step.original), len(step.guided)) for step in session.compare(PROMPT, SEARCH)]
    assert seen[:4] == [(1, 0), (1, 1), (1, 1), (2, 1)]
    slow = [step.slowdown for step in session.compare(PROMPT, SEARCH)]
    assert set(slow[:-1]) == {None}  # several tokens may come at once: only the whole says what one takes
    assert slow[-1] is not None


def test_a_comparison_that_is_left_ends_its_loop(session) -> None:
    before = threading.active_count()
    running = session.compare(PROMPT, SEARCH)
    for _ in range(4):
        next(running)
    assert threading.active_count() == before + 1
    running.close()
    until = time.monotonic() + 10
    while threading.active_count() > before:
        assert time.monotonic() < until
        time.sleep(0.01)


def test_what_a_loop_raises_reaches_the_reader(model) -> None:
    def fail(streamer: Any) -> None:
        streamer.put(torch.tensor([[1, 2]]))
        streamer.put(torch.tensor([7]))
        raise OtterError("no more")

    shown = shown_tokens(fail)
    assert next(shown) == 7
    refused(lambda: next(shown), "no more")


@pytest.mark.parametrize(
    "settings",
    [
        Settings("reward", "calm", values={"alpha": 0.0}, max_new_tokens=8),
        replace(SEARCH, values={"weight": 0.0}),
        replace(SAMPLED_SEARCH, values={"weight": 0.0, "temperature": 0.7}),
        replace(BEST, values={"weight": 0.0}),
        replace(REJECTION, values={}),
    ],
)
def test_weight_zero_gives_the_original(session, settings) -> None:
    result = last(session, settings)
    assert ids_of(result.guided) == ids_of(result.original)


@torch.no_grad()
def test_tokens_come_one_by_one_with_their_signals(session, model) -> None:
    seen = list(session.compare(PROMPT, Settings("reward", "calm", values={"alpha": 3.0}, max_new_tokens=6)))
    lengths = [len(step.original) + len(step.guided) for step in seen]
    assert lengths[:3] == [1, 2, 2]  # the original's, the guided's, and the base's that times them
    tokens = seen[-1].guided
    prompt = prompt_tokens((("user", PROMPT),), tokenizer(TEMPLATE))
    signals = model(torch.tensor([prompt + ids_of(tokens)]), use_cache=False).signals
    for index, token in enumerate(tokens, start=len(prompt)):
        assert set(token.signals) == {"reward", "calm"}
        assert token.signals["reward"] == pytest.approx(float(signals["reward"].prefix[0, index]), abs=1e-4)
        difference = signals["calm"].difference(index - 1)[0, token.token]
        assert token.signals["calm"] == pytest.approx(float(difference), abs=1e-4)


@pytest.mark.parametrize("settings", [(REWARD, CONTRAST), (SEARCH, BEST), (REJECTION, SAMPLED_SEARCH)])
def test_comparisons_do_not_mix(session, settings) -> None:
    """Two people at once, whose steps are made by whatever thread is free."""
    prompts = ("a b c", "d e")
    expected = [last(session, *pair) for pair in zip(settings, prompts, strict=True)]
    running = [session.compare(prompt, chosen) for prompt, chosen in zip(prompts, settings, strict=True)]
    results: list[Any] = [None, None]

    def step(index: int) -> None:
        results[index] = next(running[index], results[index])

    for _ in range(3 * 8 + 1):
        threads = [threading.Thread(target=step, args=(index,)) for index in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [(ids_of(r.original), ids_of(r.guided)) for r in results] == [
        (ids_of(r.original), ids_of(r.guided)) for r in expected
    ]


def test_the_threshold_stops_the_guided_response_alone(session) -> None:
    for settings in (REWARD, SEARCH, DRAFTS):
        result = last(session, replace(settings, values={"threshold": math.inf, "patience": 2}))
        assert result.stopped
        assert len(result.guided) == 3  # its end comes one token late
        assert len(result.original) == 8
    assert not last(session, replace(SEARCH, values={"threshold": -math.inf})).stopped


@pytest.fixture(scope="module")
def guarded() -> Session:
    """A guard on a base."""
    otter = tiny_otter(tiny_base(vocab_size=len(WORDS)), signal=GuardConfig(("rude",), vocabulary_rank=4))
    return Session(otter, tokenizer(TEMPLATE))


def test_a_guard_is_shown_from_0_to_1_and_stops(guarded) -> None:
    settings = Settings("reward", "reward", values={"weight": 2.0, "alarm": 1.0}, max_new_tokens=8)
    result = last(guarded, settings)
    assert not result.stopped
    assert all(
        token.labels["reward"]["rude"] == pytest.approx(1 - token.signals["reward"]) for token in result.original
    )
    original, _ = render.responses(result, "reward")
    assert "rude 0." in original
    ended = last(guarded, replace(settings, values={"alarm": 0.0}))
    assert ended.stopped
    assert len(ended.guided) < len(result.guided)
    assert "alarm rang" in render.responses(ended, "reward")[1]


def test_a_guard_takes_back(guarded) -> None:
    settings = Settings("reward", "reward", "rollback", {"alarm": 0.6, "back": 1}, max_new_tokens=8)
    result = last(guarded, settings)
    assert all(token.labels["reward"]["rude"] < 0.6 for token in result.guided)
    assert any(token.labels["reward"]["rude"] >= 0.6 for token in result.original)
    choices = Choices(guarded)
    assert "reward: rollback" in choices.guides
    *_, (_, _, _, curve) = choices.compare(
        PROMPT,
        "reward",
        "reward: rollback",
        4,
        0,
        *(0.7 if each.name == "alarm" else each.start for each in choices.controls),
    )
    assert "stroke-dasharray" in curve  # what the alarm leaves for harmless
    for guide, names in (
        ("reward: rollback", "weight alarm hits window back"),
        ("reward: guidance", "weight top_k min_p alarm hits window"),
        ("reward: rejection", "threshold"),
    ):
        offered = choices.offered("reward", guide)
        assert [each.name for each, of_use in zip(choices.controls, offered, strict=True) if of_use] == names.split()


@pytest.mark.parametrize(
    ("prompt", "wrong", "named"),
    [
        (" \n", {}, "empty"),
        ("a " * 120, {}, "context"),
        (PROMPT, {"values": {"weight": math.nan}}, "weight"),
        (PROMPT, {"values": {"weight": None}}, "weight"),
        (PROMPT, {"values": {"top_k": 0}}, "top_k"),
        (PROMPT, {"values": {"threshold": math.nan}}, "threshold"),
        (PROMPT, {"values": {"alpha": 2.0}}, "alpha goes with contrast, but here only guidance and stop are used"),
        (PROMPT, {"values": {"patience": 2}, "method": "rejection"}, "patience goes with stop"),
        (PROMPT, {"values": {"magic": 1}}, "magic goes with nothing"),
        (PROMPT, {"steering": None, "values": {"weight": 1.0}}, "here only stop is used"),
        (PROMPT, {"max_new_tokens": None}, "max_new_tokens"),
        (PROMPT, {"method": "drafts"}, "'reward' cannot guide by drafts; there is: guidance, search"),
        (PROMPT, {"steering": "nobody"}, "nobody"),
        (PROMPT, {"shown": "nobody"}, "nobody"),
    ],
)
def test_bad_input_is_a_line(session, prompt, wrong, named) -> None:
    settings = Settings(**({"shown": "reward", "steering": "reward", "max_new_tokens": 8} | wrong))
    refused(lambda: list(session.compare(prompt, settings)), named)


def test_every_method_is_offered(session) -> None:
    assert list(session.signals) == ["reward", "calm", "quick"]
    choices = Choices(session)
    assert choices.guides == [
        "reward: guidance",
        "reward: search",
        "reward: best-of-n",
        "reward: rejection",
        "calm: contrast",
        "quick: drafts",
    ]
    of_guards = intervention_type("rollback").takes[1:]
    expected = [field.name for field in fields(InterventionSettings) if field.name not in of_guards]
    assert [each.name for each in choices.controls] == expected
    alone = tiny_otter(tiny_base(), signal=DraftConfig(heads=2, width=16, rank=4, vocabulary_size=10))
    refused(lambda: Session(alone, tokenizer()), "nothing to colour with")
    contrast = Choices(Session(tiny_otter(tiny_base(), signal=ContrastConfig(rank=4)), tokenizer()))
    assert (contrast.guides, [each.name for each in contrast.controls]) == (["reward: contrast"], ["alpha", "top_p"])


@pytest.mark.parametrize(
    ("shown", "guide", "names"),
    [
        ("reward", "reward: guidance", "weight top_k min_p threshold patience"),
        ("calm", "reward: guidance", "weight top_k min_p"),
        ("reward", "reward: search", "weight top_k min_p threshold patience temperature"),
        ("reward", "reward: rejection", "threshold"),
        ("reward", "calm: contrast", "alpha top_p threshold patience"),
        ("calm", "quick: drafts", "drafts confidence"),
    ],
)
def test_the_sliders_are_those_of_the_method(session, shown, guide, names) -> None:
    choices = Choices(session)
    offered = choices.offered(shown, guide)
    assert [each.name for each, of_use in zip(choices.controls, offered, strict=True) if of_use] == names.split()


def test_sliders_are_made_from_the_registry() -> None:
    defaults = InterventionSettings()
    made = {each.name: each for each in controls(["weight", "threshold", "temperature", "top_k"])}
    assert list(made) == ["weight", "top_k", "threshold", "temperature"]
    assert (made["weight"].start, made["weight"].value(-10.0)) == (defaults.weight, -10.0)
    assert made["top_k"].label == "top k"
    for name in ("threshold", "temperature"):
        control = made[name]
        assert control.start == control.low
        assert control.value(control.low) == getattr(defaults, name)
        assert control.value(1.0) == 1.0
        assert control.info.endswith("Far left: not set.")
    InterventionSettings(**{name: control.value(control.start) for name, control in made.items()})


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


def chosen(choices: Choices, prompt: str, shown: str, guide: str | None, tokens: Any = 8, **at: Any) -> list[Any]:
    """Returns what the page passes to `Choices.compare`: every slider, where it starts or where it was moved to."""
    return [prompt, shown, guide, tokens, 0, *(at.get(each.name, each.start) for each in choices.controls)]


@pytest.mark.parametrize("guide", ["reward: guidance", "reward: search", "reward: rejection", "quick: drafts"])
def test_a_choice_is_shown(session, guide) -> None:
    choices = Choices(session)
    # A slider that is of no use does not count, wherever it stands.
    *_, (original, guided, cost, curve) = choices.compare(*chosen(choices, PROMPT, "reward", guide, top_p=7))
    assert "<span" in original
    assert "<span" in guided
    assert "time per token" in cost
    assert curve.startswith("<svg")
    assert "<path" not in curve
    *_, shown = choices.compare(*chosen(choices, PROMPT, "reward", guide, threshold=-9.9))
    assert "<path" in shown[3]  # the threshold


def check_lines(compare: Callable[..., Iterator[tuple[str, ...]]], choices: Choices) -> None:
    """Asserts that every wrong choice is a line."""
    for prompt, shown, guide, moved in (
        ("", "reward", "reward: guidance", {}),
        (PROMPT, "reward", "reward: guidance", {"weight": None}),
        (PROMPT, "<b>", "reward: guidance", {}),
        (PROMPT, "reward", "reward: guidance", {"threshold": None}),
        (PROMPT, "reward", "<b>", {}),
        (PROMPT, "reward", None, {}),
        (PROMPT, "reward", "reward: search", {"tokens": None}),
    ):
        (line,) = compare(*chosen(choices, prompt, shown, guide, **moved))
        assert line[2].startswith('<p role="alert">')
        assert "<b>" not in line[2]
        assert (line[0], line[1], line[3]) == ("", "", "")


def test_a_wrong_choice_is_a_line(session) -> None:
    choices = Choices(session)
    check_lines(choices.compare, choices)


def test_the_page(session) -> None:
    pytest.importorskip("gradio")
    from otterlm.playground.page import build

    page = build(session, "tiny")
    assert page.analytics_enabled is False
    compare, offer = (fn.fn for fn in page.fns.values() if fn.fn is not None)
    choices = Choices(session)
    *_, (original, guided, cost, curve) = compare(*chosen(choices, PROMPT, "reward", "reward: search"))
    assert "<span" in original
    assert "<span" in guided
    assert "time per token" in cost
    assert curve.startswith("<svg")
    check_lines(compare, choices)
    updates = offer("reward", "calm: contrast")
    assert [each["visible"] for each in updates] == choices.offered("reward", "calm: contrast")


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
    """Starts the command, serving SmolLM2 and the shipped adapter."""
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
    page.type("#prompt textarea", "")
    page.type("#weight input[type=number]", "2")  # a slider that is let go compares
    page.wait(lambda: page.text("#cost") == "the prompt is empty")
    page.type("#prompt textarea", "How can I get back at my neighbour for being so loud?")
    page.type("#length input[type=number]", str(LENGTH))
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

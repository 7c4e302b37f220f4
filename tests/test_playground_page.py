"""The playground's page: what it asks for, the events that it shows, and the server between."""

import json
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import add_tiny_adapter, refused, tiny_base, tiny_otter
from word_tokenizer import TEMPLATE, WORDS, tokenizer

from otterlm.cli.playground import adapter_folders
from otterlm.playground.about import about
from otterlm.playground.comparison import Settings
from otterlm.playground.events import events
from otterlm.playground.page_requests import read_request
from otterlm.playground.problems import FieldError
from otterlm.playground.server import Server
from otterlm.playground.session import Session
from otterlm.signals.contrast.config import ContrastConfig
from otterlm.signals.guard.config import GuardConfig
from otterlm.signals.reward.config import RewardConfig

STATIC = Path(sys.modules[Session.__module__].__file__ or "").parent / "static"
REQUEST: dict[str, Any] = {
    "turns": [["user", "a b c"]],
    "shown": "reward",
    "guide": ["reward", "guidance"],
    "strengths": [1, 5.0],
    "values": {"top_k": 6},
    "length": 6,
    "seed": 0,
}


@pytest.fixture(scope="module")
def session() -> Session:
    """Makes a reward and a contrast on a base."""
    signal = RewardConfig(vocabulary_rank=4, mean=0.5, spread=1.0)
    otter = tiny_otter(tiny_base(vocab_size=len(WORDS)), signal=signal)
    add_tiny_adapter(otter, "calm", 2, signal=ContrastConfig(rank=4))
    return Session(otter.eval(), tokenizer(TEMPLATE))


# -- requests ----------------------------------------------------------------------------------------------------------


def test_a_request_is_read() -> None:
    prompt, settings = read_request(REQUEST)
    assert prompt == (("user", "a b c"),)
    assert settings == Settings("reward", "reward", "guidance", {"top_k": 6}, (1, 5.0), 6)
    prompt, settings = read_request({**REQUEST, "text": "a b", "guide": None, "strengths": []})
    assert prompt == "a b"
    assert (settings.steering, settings.method) == (None, None)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"turns": [["user"]]}, "prompt"),
        ({"turns": [["robot", "a"]]}, "prompt"),
        ({"turns": None}, "prompt"),
        ({"text": 1}, "prompt"),
        ({"shown": None}, "shown"),
        ({"guide": "reward"}, "guide"),
        ({"guide": ["reward"]}, "guide"),
        ({"strengths": ["x"]}, "strengths"),
        ({"strengths": [True]}, "strengths"),
        ({"values": []}, "guide"),
    ],
)
def test_a_bad_request_names_its_field(changes, field) -> None:
    with pytest.raises(FieldError) as error:
        read_request({**REQUEST, **changes})
    assert error.value.field == field


def test_a_request_is_an_object() -> None:
    refused(lambda: read_request([1]), "JSON object")


# -- events ------------------------------------------------------------------------------------------------------------


def test_events_hold_what_the_comparison_does(session) -> None:
    prompt, settings = read_request(REQUEST)
    seen = list(events(session, prompt, settings))
    *_, whole = session.compare(prompt, settings)
    assert seen[0] == {"kind": "start", "sides": ["Original", "Weight 1", "Weight 5"]}
    for side, outcome in enumerate((whole.original, *whole.guided)):
        tokens = [each["token"] for each in seen if each["kind"] == "token" and each["side"] == side]
        assert [token["id"] for token in tokens] == [token.token for token in outcome.tokens]
        assert [token["text"] for token in tokens] == [token.text for token in outcome.tokens]
        assert len([each for each in seen if each["kind"] == "ended" and each["side"] == side]) == 1
    assert seen[-1]["kind"] == "end"
    assert seen[-1]["exact"] is True
    assert len(seen[-1]["slowdowns"]) == 2
    json.dumps(seen, allow_nan=False)


def test_names_of_responses(session) -> None:
    def names(**changes: Any) -> list[str]:
        settings = replace(Settings("reward", "reward", max_new_tokens=1), **changes)
        return list(next(iter(events(session, "a", settings)))["sides"])

    assert names() == ["Original", "Guided"]
    assert names(steering=None) == ["Original", "Guarded"]
    assert names(steering="calm", strengths=(0.5,)) == ["Original", "Alpha 0.5"]
    assert names(method="rejection", strengths=(0.5,)) == ["Original", "Guided"]


def test_an_error_is_an_event(session) -> None:
    prompt, settings = read_request({**REQUEST, "values": {"top_k": 0}})
    (error,) = events(session, prompt, settings)
    assert (error["kind"], error["field"]) == ("error", "top_k")
    assert "top_k" in error["message"]


# -- what the page knows -----------------------------------------------------------------------------------------------


def test_what_the_page_knows(session) -> None:
    known = about(session, "tiny", ["other"])
    json.dumps(known, allow_nan=False)
    reward, calm = known["adapters"]
    assert (reward["range"], reward["alarm"], reward["coloured"]) == ((-1.5, 2.5), None, True)
    assert calm["range"] is None
    guides = [(each["adapter"], each["method"]) for each in known["guides"]]
    assert guides[0] == ("reward", "guidance")
    assert guides[-1] == (None, None)
    assert known["guides"][0]["takes"]["calm"] == ["weight", "top_k", "min_p"]


def test_of_a_guard_the_page_first_watches() -> None:
    otter = tiny_otter(tiny_base(vocab_size=len(WORDS)), signal=GuardConfig(("rude",), vocabulary_rank=4))
    known = about(Session(otter, tokenizer(TEMPLATE)), "tiny", [])
    assert known["guides"][0]["adapter"] is None
    assert (known["adapters"][0]["alarm"], known["adapters"][0]["labels"]) == (0.5, ["rude"])


def test_the_recorded_example_is_whole() -> None:
    recorded = json.loads((STATIC / "recorded.json").read_text())
    prompt, settings = read_request(recorded["request"])
    assert recorded["events"][0]["kind"] == "start"
    assert recorded["events"][-1]["exact"] is True
    tokens = [each for each in recorded["events"] if each["kind"] == "token"]
    assert {each["side"] for each in tokens} == {0, 1, 2}
    assert all(settings.shown in each["token"]["signals"] and each["token"]["alternatives"] for each in tokens)
    assert prompt
    assert settings.shown in [each["name"] for each in recorded["adapters"]]


# -- the server --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(session, tmp_path_factory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("adapters")
    other = tiny_otter(tiny_base(vocab_size=len(WORDS)), seed=5, signal=ContrastConfig(rank=4))
    other.save_pretrained(folder / "late")
    (folder / "broken").mkdir()
    (folder / "broken" / "adapter_config.json").write_text("{}")
    with Server(session, "tiny", ("127.0.0.1", 0), adapter_folders(folder)) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def ask(server: Server, path: str, body: Any = None, **headers: str) -> bytes:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{server.url}{path}", data, {"Content-Type": "application/json"} | headers)
    with urllib.request.urlopen(request, timeout=60) as response:
        return bytes(response.read())


def status(server: Server, path: str, body: Any = None, **headers: str) -> int:
    with pytest.raises(urllib.error.HTTPError) as error:
        ask(server, path, body, **headers)
    return error.value.code


def test_the_page_is_served_and_fetches_nothing_from_elsewhere(server) -> None:
    for path in STATIC.iterdir():
        sent = ask(server, "/" if path.name == "index.html" else f"/{path.name}")
        assert sent == path.read_bytes()
        text = sent.decode().replace("http://www.w3.org/2000/svg", "")  # a name, not an address
        assert "http:" not in text
        assert "https:" not in text
    with urllib.request.urlopen(server.url, timeout=60) as response:
        assert "default-src 'self'" in response.headers["Content-Security-Policy"]


def test_a_comparison_is_streamed(server, session) -> None:
    lines = [json.loads(line) for line in ask(server, "/compare", REQUEST).splitlines()]
    expected = list(events(session, *read_request(REQUEST)))
    assert [line["kind"] for line in lines] == [each["kind"] for each in expected]
    assert [line.get("token", {}).get("id") for line in lines] == [each.get("token", {}).get("id") for each in expected]
    (error,) = (json.loads(line) for line in ask(server, "/compare", {**REQUEST, "strengths": ["x"]}).splitlines())
    assert (error["kind"], error["field"]) == ("error", "strengths")


def test_adapters_of_a_folder_are_loaded(server) -> None:
    assert json.loads(ask(server, "/about"))["available"] == ["broken", "late"]
    assert "broken" in json.loads(ask(server, "/load", "broken"))["error"]
    assert "no adapter 'x'" in json.loads(ask(server, "/load", "x"))["error"]
    loaded = json.loads(ask(server, "/load", "late"))
    assert loaded["available"] == ["broken"]
    assert "late" in [each["name"] for each in loaded["adapters"]]
    request = {**REQUEST, "shown": "late", "guide": ["late", "contrast"], "values": {}}
    assert json.loads(ask(server, "/compare", request).splitlines()[-1])["exact"]


def test_other_sites_and_odd_paths_are_refused(server) -> None:
    assert status(server, "/about", Host="evil.example") == 403
    assert status(server, "/compare", REQUEST, Host="evil.example") == 403
    assert status(server, "/compare", REQUEST, **{"Content-Type": "text/plain"}) == 403
    for path in ("/../about.py", "/%2e%2e/about.py", "/nothing.js", "/server.py", "/static/page.js"):
        assert status(server, path) == 404
    assert status(server, "/nothing", {}) == 404
    assert status(server, "/load", "x", **{"Content-Length": "-1"}) == 400
    assert "no adapter {}" in json.loads(ask(server, "/load", {}))["error"]


def test_half_of_a_character_is_one_line(server) -> None:
    request = {name: value for name, value in REQUEST.items() if name != "turns"} | {"text": "a \ud800"}
    (error,) = (json.loads(line) for line in ask(server, "/compare", request).splitlines())
    assert (error["kind"], error["field"]) == ("error", "prompt")
    assert "half of a character" in error["message"]


def test_the_adapters_of_a_folder(tmp_path) -> None:
    refused(lambda: adapter_folders(tmp_path), "holds no adapters")
    for name in ("smollm2-135m", "2nd", "good"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_text("{}")
    assert adapter_folders(tmp_path) == {
        "_2nd": tmp_path / "2nd",
        "good": tmp_path / "good",
        "smollm2_135m": tmp_path / "smollm2-135m",
    }
    (tmp_path / "smollm2_135m").mkdir()
    (tmp_path / "smollm2_135m" / "adapter_config.json").write_text("{}")
    refused(lambda: adapter_folders(tmp_path), "smollm2-135m and smollm2_135m would both be 'smollm2_135m'")

"""A server with two API processes loads, unloads and lists adapters while it answers, and logs what it does."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import add_tiny_adapter, tiny_base
from engines import SIGNALS, SIZES, Answer, assert_rewards, make_folder
from test_server import GREEDY, PROMPT, SETTINGS, post, wait

from otterlm.engines.exported import load_exported
from otterlm.model import OtterModel

PORT = 8219
ADAPTERS = "/v1/otter/adapters"
LONG = PROMPT * 4
"""A prompt of several blocks of the prefix cache."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Makes a folder with a reward and a guard, and beside it adapters that fit a slot or do not."""
    out = tmp_path_factory.mktemp("changing")
    exported = make_folder(out, signals=("reward", "moderator"))
    sizes: dict[str, Any] = SIZES
    model = OtterModel(tiny_base(**sizes))
    for name, settings in (
        ("second", {"seed": 7}),
        ("narrow", {"seed": 8, "intermediate_size": 8}),
        ("strict", {**SIGNALS["moderator"], "seed": 9}),
    ):
        add_tiny_adapter(model, name, **settings)
        model.save_pretrained(out / name, name)
    return exported


@pytest.fixture(scope="module")
def log(folder: Path) -> Path:
    return folder.parent / "server.log"


@pytest.fixture(scope="module")
def http(folder: Path, log: Path) -> Iterator[httpx.Client]:
    """Makes a client of a running server. Its connections are not used twice, so that both processes answer."""
    out = folder.parent
    command = [sys.executable, "-m", "otterlm.cli", "serve", "--load-adapters", "--base", str(out / "base")]
    command += ["--adapter", f"reward={out / 'reward'}", "--adapter", f"moderator={out / 'moderator'}"]
    command += [*SETTINGS, "--host", "127.0.0.1", "--port", str(PORT), "--api-server-count", "2", "--block-size", "32"]
    environment = os.environ | {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "1",
        "VLLM_LOGGING_LEVEL": "INFO",
        "OTTER_HOME": str(out / "home"),
    }
    with log.open("w") as file, subprocess.Popen(command, env=environment, stdout=file, stderr=file) as server:
        try:
            limits = httpx.Limits(max_keepalive_connections=0)
            with httpx.Client(base_url=f"http://127.0.0.1:{PORT}", timeout=60, limits=limits) as session:
                wait(session, server)
                yield session
        finally:
            server.terminate()
            server.wait(60)


def events(log: Path) -> list[dict[str, Any]]:
    """Returns what Otter has logged."""
    lines = [line.partition("otter {") for line in log.read_text().splitlines()]
    return [json.loads("{" + rest) for _, mark, rest in lines if mark and rest.startswith('"event"')]


def listed(http: httpx.Client) -> dict[str, bool]:
    return {line["id"]: line["loaded"] for line in http.get(ADAPTERS).json()["data"]}


def wait_for(http: httpx.Client, state: dict[str, bool]) -> None:
    """Waits until both processes know a change: the other one gets it a moment after the answer."""
    end = time.monotonic() + 60
    while not all(listed(http) == state for _ in range(8)):
        assert time.monotonic() < end, listed(http)
        time.sleep(0.1)


def rewarded(http: httpx.Client, **xargs: Any) -> Answer:
    """Returns an answer with all rewards."""
    body = {**GREEDY, "prompt": LONG, "return_token_ids": True, "ignore_eos": True}
    (choice,) = post(http, "/v1/completions", body, {"vllm_xargs": {"otter_rewards": 1, **xargs}})["choices"]
    return Answer(choice["prompt_token_ids"], choice["token_ids"], choice["otter"]["rewards"], [])


def refusal(response: httpx.Response, code: int) -> str:
    assert response.status_code == code, response.text
    message: str = response.json()["error"]["message"]
    return message


def test_another_adapter_takes_a_slot(http: httpx.Client, folder: Path, log: Path) -> None:
    """Its rewards are those of Transformers, also of prompts that were cached before it came; each process knows it."""
    out = folder.parent
    model: Any = load_exported(folder)
    model.load_adapter(out / "second", "second")
    model.load_adapter(out / "strict", "strict")
    before = rewarded(http)
    assert_rewards(model, [before], "reward", "moderator")
    wait_for(http, {"reward": True, "moderator": True})
    for _ in range(4):  # the cache is warm, whichever process answers
        assert rewarded(http).rewards["reward"] == pytest.approx(before.rewards["reward"], abs=1e-4)

    full = http.post(ADAPTERS, json={"name": "second", "path": str(out / "second")})
    assert "unload one first" in refusal(full, 400)
    assert http.delete(f"{ADAPTERS}/reward").status_code == 200
    wait_for(http, {"reward": False, "moderator": True})
    for _ in range(4):
        assert rewarded(http).rewards.keys() == {"moderator"}
    narrow = http.post(ADAPTERS, json={"name": "narrow", "path": str(out / "narrow")})
    assert "reward has intermediate_size 12, not 8" in refusal(narrow, 400)

    answer = http.post(ADAPTERS, json={"name": "second", "path": str(out / "second")})
    assert answer.status_code == 200, answer.text
    assert answer.json()["loaded"]
    wait_for(http, {"second": True, "moderator": True})
    for _ in range(4):
        after = rewarded(http)
        assert after.tokens == before.tokens
        assert_rewards(model, [after], "second", "moderator")
    steered = {"otter_weight": 3, "otter_signal": "second"}
    assert rewarded(http, **steered).tokens != before.tokens
    unknown = http.post("/v1/completions", json={**GREEDY, "prompt": "a", "vllm_xargs": {"otter_weight": 1}})
    assert "second" in refusal(unknown, 400)

    # The guard's labels go, and come back with other weights.
    assert http.delete(f"{ADAPTERS}/moderator").status_code == 200
    assert http.post(ADAPTERS, json={"name": "strict", "path": str(out / "strict")}).status_code == 200
    wait_for(http, {"second": True, "strict": True})
    assert_rewards(model, [rewarded(http)], "second", "strict")
    assert [event["event"] for event in events(log) if "adapter" in event["event"]] == [
        "adapter_unloaded",
        "adapter_loaded",
        "adapter_unloaded",
        "adapter_loaded",
    ]


def test_a_slot_in_use_is_not_taken(http: httpx.Client, folder: Path) -> None:
    """A request that has begun has its adapter to its end."""
    out = folder.parent
    name = next(name for name in listed(http) if name in ("reward", "second"))
    body = {**GREEDY, "prompt": LONG, "max_tokens": 150, "ignore_eos": True, "stream": True}
    body["vllm_xargs"] = {"otter_rewards": 1}
    with http.stream("POST", "/v1/completions", json=body) as response:
        lines = response.iter_lines()
        next(lines)
        assert http.delete(f"{ADAPTERS}/{name}").status_code == 200
        busy = http.post(ADAPTERS, json={"name": "again", "path": str(out / "reward")})
        assert f"1 requests still use {name}" in refusal(busy, 409)
        pieces = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    rewards = [
        each for piece in pieces for each in piece["choices"][0].get("otter", {}).get("rewards", {}).get(name, [])
    ]
    assert len(rewards) >= 148
    assert http.post(ADAPTERS, json={"name": "again", "path": str(out / "reward")}).status_code == 200


def test_what_cannot_be_changed_is_refused(http: httpx.Client, folder: Path) -> None:
    for body, words in (
        ({"name": "a"}, "name and its path"),
        ({"name": "a", "path": str(folder.parent / "nobody")}, "not an adapter folder"),
        ({"name": "a", "path": str(folder.parent / "base")}, "no such file"),
        ({"name": "strict", "path": str(folder.parent / "strict")}, "is loaded"),
    ):
        assert words in refusal(http.post(ADAPTERS, json=body), 400)
    assert "no adapter 'nobody'" in refusal(http.delete(f"{ADAPTERS}/nobody"), 400)
    assert http.post(ADAPTERS, content="{").status_code == 400


def test_the_log_and_the_document(http: httpx.Client, log: Path) -> None:
    """A line of JSON says what became of a request, by the client's name for it."""
    ended = {"otter_alarm": '{"threat": 0}', "otter_guard": "strict"}
    body = {**GREEDY, "prompt": PROMPT}
    named = {"X-Request-Id": "mine"}
    answer = http.post("/v1/completions", json={**body, "vllm_xargs": ended}, headers=named).json()
    assert answer["id"] == "cmpl-mine"
    assert http.post("/v1/completions", json={**body, "vllm_xargs": {"otter_x": 1}}, headers=named).status_code == 400
    scored = http.post("/v1/otter/score", json={"model": "otter", "input": "a"}, headers=named).json()
    assert scored["id"] == "score-mine"
    stopped, refused = (
        next(event for event in events(log) if event["event"] == name and event.get("request", "").endswith(ending))
        for name, ending in (("response_stopped", "mine-0"), ("request_refused", "mine"))
    )
    assert (stopped["adapter"], stopped["label"]) == ("strict", "threat")
    assert 0 <= stopped["probability"] <= 1
    assert "unknown argument otter_x" in refused["reason"]
    document = http.get("/openapi.json").json()
    assert "otter_weight" in document["components"]["schemas"]["OtterSettings"]["properties"]
    for request in ("CompletionRequest", "ChatCompletionRequest"):
        field = document["components"]["schemas"][request]["properties"]["vllm_xargs"]
        assert any("OtterSettings" in str(kind.get("allOf")) for kind in field["anyOf"])
    assert "/v1/otter/score" in document["paths"]

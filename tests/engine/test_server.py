"""The server answers on every route, streamed or not: by `otter serve` with two API processes, and by `run-batch`."""

import asyncio
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
import torch
from engines import Answer, assert_rewards, make_folder, tokenizer
from openai import OpenAI

from otterlm import client
from otterlm.decoding import judge_prompt
from otterlm.engines.exported import load_exported
from otterlm.engines.rewards import STOPPED, extend
from otterlm.engines.vllm.metrics import REWARDS as BUCKETS

PORT = 8217
SIGNALS = ("reward", "guard", "moderator")
SETTINGS = ["--dtype", "float32", "--enforce-eager", "--max-model-len", "256", "--served-model-name", "otter"]
PROMPT = "The otter swims under"
GREEDY = {"model": "otter", "temperature": 0, "max_tokens": 8}
CHAT: dict[str, Any] = {**GREEDY, "messages": [{"role": "user", "content": "Hello"}]}
REWARDS = {"vllm_xargs": {"otter_rewards": 1}}
GUARD = {"vllm_xargs": {"otter_threshold": 1e6, "otter_guard": "guard"}}
LABELS = ("rude", "threat")
RINGING = {"vllm_xargs": {"otter_alarm": '{"threat": 0}'}}
"""Every token is a hit."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("served"), signals=SIGNALS)


@pytest.fixture(scope="module")
def http(folder: Path) -> Iterator[httpx.Client]:
    """Makes a client of a running server."""
    command = [sys.executable, "-m", "otterlm.cli", "serve", "--base", str(folder.parent / "base")]
    command += [part for name in SIGNALS for part in ("--adapter", f"{name}={folder.parent / name}")]
    command += [*SETTINGS, "--host", "127.0.0.1", "--port", str(PORT), "--api-server-count", "2"]
    command += ["--root-path", "/some/where", "--enable-scale-out"]
    environment = os.environ | {"VLLM_ENABLE_V1_MULTIPROCESSING": "1", "OTTER_HOME": str(folder.parent / "home")}
    with subprocess.Popen(command, env=environment) as server:
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{PORT}", timeout=60) as session:
                wait(session, server)
                yield session
        finally:
            server.terminate()
            server.wait(60)


def wait(session: httpx.Client, server: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        assert server.poll() is None, f"the server ended with {server.returncode}"
        try:
            if session.get("/health").status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(1)
    raise TimeoutError


def post(http: httpx.Client, route: str, *fields: dict[str, Any]) -> Any:
    """Returns the response to a request."""
    body = {key: value for each in fields for key, value in each.items()}
    response = http.post(route, json=body)
    assert response.status_code == 200, response.text
    if body.get("stream"):
        return [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: {")]
    return response.json()


def gathered(pieces: list[Any], choice: int = 0) -> dict[str, Any]:
    """Returns the numbers of a streamed choice, over all its pieces."""
    numbers: dict[str, Any] = {}
    for each in (each for piece in pieces for each in piece["choices"] if each["index"] == choice):
        extend(numbers, each.get("otter", {}))
    return numbers


def joined(pieces: list[Any], choice: int = 0) -> dict[str, list[float]]:
    """Returns the rewards of a streamed choice."""
    rewards: dict[str, list[float]] = gathered(pieces, choice).get("rewards", {})
    return rewards


def test_completions(http: httpx.Client, folder: Path) -> None:
    """Rewards come beside log probabilities, of the text that each token was chosen after."""
    body = {**GREEDY, "prompt": PROMPT, "logprobs": 5, "return_token_ids": True}
    plain = post(http, "/v1/completions", body)
    (choice,) = post(http, "/v1/completions", body, REWARDS)["choices"]
    rewards = choice.pop("otter")["rewards"]
    assert [choice] == plain["choices"]
    answer = Answer(choice["prompt_token_ids"], choice["token_ids"], rewards, [])
    assert_rewards(load_exported(folder), [answer], "reward", "guard")
    for fields in (body, {**body, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}):
        assert joined(post(http, "/v1/completions", fields, REWARDS, {"stream": True})) == rewards
    echo = post(http, "/v1/completions", body, REWARDS, {"echo": True, "return_token_ids": False})["choices"][0]
    assert echo["text"].startswith(PROMPT)
    assert echo["otter"]["rewards"] == rewards
    nothing = post(http, "/v1/completions", body, REWARDS, {"echo": True, "max_tokens": 0})["choices"][0]
    assert "otter" not in nothing


@pytest.mark.parametrize("stream", [False, True])
def test_several_prompts_with_several_choices(http: httpx.Client, stream: bool) -> None:
    fields = {"prompt": [PROMPT, "Rain"], "n": 2, "temperature": 1.0, "seed": 3, "return_token_ids": True}
    answer = post(http, "/v1/completions", GREEDY, fields, REWARDS, {"stream": stream, "ignore_eos": True})
    pieces = answer if stream else [answer]
    firsts = []
    for index in range(4):
        rewards = joined(pieces, index)["reward"]
        assert len(rewards) == 8
        firsts.append(rewards[0])
    # The first is the prompt's.
    assert firsts[0] == pytest.approx(firsts[1], abs=1e-4)
    assert firsts[2] == pytest.approx(firsts[3], abs=1e-4)
    assert firsts[0] != pytest.approx(firsts[2], abs=1e-4)


@pytest.mark.parametrize("fields", [{}, {"structured_outputs": {"choice": ["yes", "no"]}}, {"min_tokens": 3}])
def test_a_guard_leaves_no_trace_of_the_token_after(http: httpx.Client, fields: dict[str, Any]) -> None:
    body = {**GREEDY, "prompt": PROMPT, "return_token_ids": True, "skip_special_tokens": False, **fields}
    plain = post(http, "/v1/completions", body)["choices"][0]
    length = fields.get("min_tokens", 1)
    answer = post(http, "/v1/completions", body, GUARD)
    (choice,) = answer["choices"]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", STOPPED)
    assert choice["token_ids"] == plain["token_ids"][:length]
    assert plain["text"].startswith(choice["text"])
    assert answer["usage"]["completion_tokens"] == length
    pieces = post(http, "/v1/completions", body, GUARD, {"stream": True, "stream_options": {"include_usage": True}})
    assert [token for piece in pieces[:-1] for token in piece["choices"][0]["token_ids"]] == choice["token_ids"]
    assert pieces[-2]["choices"][0]["stop_reason"] == STOPPED
    assert pieces[-1]["usage"]["completion_tokens"] == length


def test_labels_and_the_prompts_verdict(http: httpx.Client) -> None:
    """They are in every choice; of a stream, the prompt's in the first piece. An alarm names the label that rang."""
    everything = {"vllm_xargs": {"otter_guards": 1, "otter_rewards": 1, "otter_prompt": 1}}
    for route, body in (("/v1/completions", {**GREEDY, "prompt": PROMPT}), ("/v1/chat/completions", CHAT)):
        (whole,) = post(http, route, body, everything, {"ignore_eos": True})["choices"]
        numbers = whole["otter"]
        assert {name: len(values) for name, values in numbers["guards"]["moderator"].items()} == dict.fromkeys(
            LABELS, 8
        )
        assert len(numbers["spans"]["moderator"]["threat"]) == len(numbers["rewards"]["moderator"]) == 8
        verdict = numbers["prompt"]["guards"]["moderator"]
        assert verdict["probabilities"] == {label: numbers["guards"]["moderator"][label][0] for label in LABELS}
        assert numbers["prompt"]["rewards"] == {name: values[0] for name, values in numbers["rewards"].items()}
        pieces = post(http, route, body, everything, {"ignore_eos": True, "stream": True})
        assert gathered(pieces) == rounded_to(numbers, gathered(pieces))
        assert "prompt" in pieces[0]["choices"][0]["otter"]
        ended = post(http, route, body, RINGING)["choices"][0]
        assert (ended["finish_reason"], ended["stop_reason"]) == ("stop", "otter: threat")
        assert post(http, route, body, RINGING, {"stream": True})[-1]["choices"][0]["stop_reason"] == "otter: threat"


def rounded_to(numbers: Any, others: Any) -> Any:
    """Returns what compares equal to numbers that differ by rounding."""
    if isinstance(numbers, dict):
        assert numbers.keys() == others.keys()
        return {name: rounded_to(numbers[name], others[name]) for name in numbers}
    return numbers if isinstance(numbers, str | bool) else pytest.approx(numbers, abs=1e-4)


def test_a_flagged_prompt_gets_no_token(http: httpx.Client, flagged: str) -> None:
    refusing = {"vllm_xargs": {"otter_refuse": 1, "otter_prompt": 1}}
    for route, fields in (
        ("/v1/completions", {**GREEDY, "prompt": flagged, "logprobs": 2, "min_tokens": 2}),
        ("/v1/chat/completions", {**CHAT, "messages": [{"role": "user", "content": flagged}], "logprobs": True}),
    ):
        answer = post(http, route, fields, refusing)
        (choice,) = answer["choices"]
        assert choice["finish_reason"] == "stop"
        assert choice["stop_reason"] in {f"otter: {label} in the prompt" for label in LABELS}
        assert (choice.get("text") or (choice.get("message") or {}).get("content") or "") == ""
        assert choice["otter"]["prompt"]["guards"]["moderator"]["flagged"] is True
        assert answer["usage"]["completion_tokens"] == 0
        pieces = post(http, route, fields, refusing, {"stream": True})
        assert gathered(pieces)["prompt"]["guards"]["moderator"]["flagged"] is True
        assert pieces[-1]["choices"][0]["stop_reason"] == choice["stop_reason"]
        texts = [
            each["choices"][0].get("text") or each["choices"][0].get("delta", {}).get("content") for each in pieces
        ]
        assert not any(texts)


def test_scores_of_texts(http: httpx.Client, folder: Path) -> None:
    model, encode = load_exported(folder), tokenizer().encode
    texts = ["You otter.", "The otter swims under", "Rain"]
    server = OpenAI(base_url=f"{http.base_url}/v1", api_key="-")
    for name, field in (("input", texts), ("messages", [[{"role": "assistant", "content": text}] for text in texts])):
        for text, scored in zip(texts, client.score(server, "otter", **{name: field}, tokens=True), strict=True):
            assert scored["token_ids"] == encode(text)
            with torch.no_grad():
                signal = model(torch.tensor([encode(text)])).signals["moderator"]
            ours = torch.tensor([scored["tokens"]["guards"]["moderator"][label] for label in LABELS]).T
            torch.testing.assert_close(ours, signal.probabilities[0], atol=1e-4, rtol=0)
            at_end = scored["guards"]["moderator"]["probabilities"]
            assert at_end == pytest.approx(dict(zip(LABELS, ours[-1].tolist(), strict=True)), abs=1e-4)
            assert scored["rewards"]["moderator"] == pytest.approx(float(signal.prefix[0, -1].detach()), abs=1e-4)
    (alone,) = client.score(server, "otter", input=texts[0])
    (asked,) = client.score(server, "otter", messages=[{"role": "user", "content": texts[0]}])
    assert alone.keys() == asked.keys() == {"index", "rewards", "guards"}
    assert asked["rewards"] == pytest.approx(alone["rewards"], abs=1e-4)
    for body, message in (
        ({}, "give either input"),
        ({"input": "a", "messages": []}, "give either input"),
        ({"messages": []}, "must be a dialogue"),
        ({"messages": ["a"]}, "a dialogue must be a list of messages"),
        ({"input": "a", "top_k": 1}, "unknown field top_k"),
        ({"input": "a", "tokens": 1}, "tokens must be true or false"),
        ({"input": {"a": 1}}, "input must be a text or a list of texts"),
        ({"input": "a" * 400}, "maximum context length"),
    ):
        response = http.post("/v1/otter/score", json={"model": "otter", **body})
        assert response.status_code == 400, response.text
        assert message in response.json()["error"]["message"]
    assert http.post("/v1/otter/score", content="{").status_code == 400
    assert http.post("/v1/otter/score", json={"model": "nobody", "input": "a"}).status_code == 404


def test_metrics(http: httpx.Client, flagged: str) -> None:
    """What requests ask for, and how responses end, is counted where vLLM counts."""
    before = metrics(http)
    body = {**GREEDY, "prompt": PROMPT, "ignore_eos": True}
    answered = post(http, "/v1/completions", body, {"vllm_xargs": {"otter_guards": 1, "otter_rewards": 1}})
    post(http, "/v1/completions", body, RINGING)
    post(http, "/v1/completions", body, GUARD)
    post(http, "/v1/completions", body, {"prompt": flagged, "vllm_xargs": {"otter_refuse": 1}})
    post(http, "/v1/completions", body, {"vllm_xargs": {"otter_weight": 1, "otter_signal": "moderator"}})
    assert http.post("/v1/completions", json={**body, "vllm_xargs": {"otter_guards": 3}}).status_code == 400
    after = metrics(http)
    new = {name: after[name] - before.get(name, 0) for name in after if after[name] != before.get(name, 0)}
    assert new['otter:stops_total{adapter="moderator",label="threat"}'] == 1
    assert new['otter:stops_total{adapter="guard",label=""}'] == 1
    refused = [name for name in new if name.startswith('otter:refused_prompts_total{adapter="moderator"')]
    assert [new[name] for name in refused] == [1]
    assert new['otter:steered_requests_total{adapter="moderator"}'] == 1
    assert new["otter:refused_requests_total"] == 1
    numbers = answered["choices"][0]["otter"]
    assert new['otter:reward_count{adapter="reward"}'] == 1
    at_or_above = [name for name in new if name.startswith('otter:reward_bucket{adapter="reward"')]
    assert len(at_or_above) == 1 + sum(bound >= numbers["rewards"]["reward"][-1] for bound in BUCKETS)
    assert new['otter:label_probability_count{adapter="moderator",label="rude"}'] == 3
    one_word = {"ignore_eos": False, "structured_outputs": {"choice": ["yes"]}, "max_tokens": 20}
    post(http, "/v1/completions", body, one_word, REWARDS)  # the end token ends it
    assert metrics(http)['otter:reward_count{adapter="reward"}'] == after['otter:reward_count{adapter="reward"}'] + 1


def metrics(http: httpx.Client) -> dict[str, float]:
    """Returns Otter's metrics, by their names with labels."""
    lines = [line for line in http.get("/metrics").text.splitlines() if line.startswith("otter:")]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines) if "_created" not in name}


@pytest.fixture(scope="module")
def flagged(folder: Path) -> str:
    """Returns a prompt that the moderator flags."""
    model, encode = load_exported(folder), tokenizer().encode
    texts = [chr(first) + chr(second) for first in range(97, 123) for second in range(97, 105)]
    verdicts = judge_prompt(model, torch.tensor([encode(text) for text in texts]), adapter_name="moderator")
    return max(zip(texts, verdicts, strict=True), key=lambda each: each[1].probability)[0]


def test_rewards_under_a_schema(http: httpx.Client) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
    fields = {
        "max_tokens": 40,
        "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}},
    }
    answer = post(http, "/v1/chat/completions", CHAT, fields, REWARDS)
    (choice,) = answer["choices"]
    assert len(choice["otter"]["rewards"]["reward"]) == answer["usage"]["completion_tokens"]
    assert max(map(abs, choice["otter"]["rewards"]["reward"])) < 100


def test_chats(http: httpx.Client) -> None:
    fields = {"logprobs": True, "top_logprobs": 2}
    plain = post(http, "/v1/chat/completions", CHAT, fields)["choices"][0]
    choice = post(http, "/v1/chat/completions", CHAT, fields, REWARDS)["choices"][0]
    rewards = choice.pop("otter")["rewards"]
    assert choice == plain
    assert len(rewards["reward"]) == len(plain["logprobs"]["content"])
    pieces = post(http, "/v1/chat/completions", CHAT, fields, REWARDS, {"stream": True})
    assert joined(pieces) == rewards
    for piece in pieces:  # beside the tokens they belong to
        steps = (piece["choices"][0].get("logprobs") or {}).get("content", [])
        assert len(joined([piece]).get("reward", [])) == len(steps)
    batch = post(http, "/v1/chat/completions/batch", CHAT, {"messages": [CHAT["messages"]] * 2}, REWARDS)
    for each in batch["choices"]:
        assert each["otter"]["rewards"]["reward"] == pytest.approx(rewards["reward"], abs=1e-4)


def test_the_client_of_openai(http: httpx.Client) -> None:
    """Its streams are read with choices apart, rewards and the guard's reason."""
    chats = OpenAI(base_url=f"{http.base_url}/v1", api_key="-").chat.completions
    guarded = REWARDS["vllm_xargs"] | {"otter_threshold": 1e6, "otter_guard": "guard"}
    for n, xargs, length in ((2, REWARDS["vllm_xargs"], 8), (2, guarded, 1)):
        fields = {"vllm_xargs": xargs, "ignore_eos": True}
        stream = chats.create(**CHAT | {"temperature": 1.0}, n=n, seed=1, stream=True, extra_body=fields)
        pieces = list(client.read(stream))
        for choice in range(n):
            rewards = [
                number for piece in pieces if piece.choice == choice for number in piece.rewards.get("reward", [])
            ]
            reasons = [piece.stop_reason for piece in pieces if piece.choice == choice and piece.stop_reason]
            assert len(rewards) == length
            assert reasons == [STOPPED] * (length == 1)


def test_responses(http: httpx.Client) -> None:
    body = {"model": "otter", "temperature": 0, "max_output_tokens": 8, "input": "Hello"}
    plain = post(http, "/v1/responses", body)
    answer = post(http, "/v1/responses", body, REWARDS)
    rewards = answer["otter"]["rewards"]
    assert answer["output"][0]["content"] == plain["output"][0]["content"]
    assert len(rewards["reward"]) == answer["usage"]["output_tokens"] == 8
    events = post(http, "/v1/responses", body, REWARDS, {"stream": True})
    assert events[-1]["type"] == "response.completed"
    assert events[-1]["response"]["otter"]["rewards"] == rewards
    deltas = [number for event in events if "otter" in event for number in event["otter"]["rewards"]["reward"]]
    assert deltas
    assert deltas == rewards["reward"][: len(deltas)]
    judged = post(http, "/v1/responses", body, {"vllm_xargs": {"otter_prompt": 1, "otter_guards": 1}})
    assert judged["otter"]["prompt"]["guards"]["moderator"]["label"] in LABELS
    assert len(judged["otter"]["guards"]["moderator"]["rude"]) == 8
    assert post(http, "/v1/responses", body, RINGING)["otter"] == {"stop_reason": "otter: threat"}
    ended = post(http, "/v1/responses", body, GUARD)
    assert ended["otter"] == {"stop_reason": STOPPED}
    assert ended["usage"]["output_tokens"] == 1


ROUTES: dict[str, dict[str, Any]] = {
    "/v1/completions": {**GREEDY, "prompt": PROMPT},
    "/v1/chat/completions": CHAT,
    "/v1/chat/completions/batch": {**CHAT, "messages": [CHAT["messages"]]},
    "/v1/responses": {"model": "otter", "input": "Hello"},
    "/v1/messages": CHAT,
}


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_honoured_is_a_400_that_says_why(http: httpx.Client, route: str, stream: bool) -> None:
    body = ROUTES[route] | ({"stream": True} if stream and "batch" not in route else {})
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"vllm_xargs": {"otter_wieght": 1}}, "unknown argument otter_wieght"),
        ({"vllm_xargs": {"Otter-Weight": 1}}, "unknown argument Otter-Weight"),
        ({"otter_weight": 1}, "go into vllm_xargs"),
        ({"vllm_xargs": {"otter_weight": 1e308, "otter_signal": "reward"}}, "from -1e+06"),
        ({"vllm_xargs": {"otter_signal": "reward"}}, "has no effect"),
        ({"vllm_xargs": {"otter_alarm": '{"rud": 0.5}'}}, "no label 'rud'"),
    ]
    for fields, message in wrong:
        response = http.post(route, json=body | fields)
        assert response.status_code == 400, response.text
        assert message in response.json()["error"]["message"]
    digits = json.dumps(body | {"vllm_xargs": {"otter_threshold": 0, "otter_guard": "guard"}}).replace(
        '"otter_threshold": 0', f'"otter_threshold": {"9" * 400}'
    )
    response = http.post(route, content=digits, headers={"content-type": "application/json"})
    assert response.status_code == 400
    assert "finite" in response.json()["error"]["message"]


def test_where_there_is_no_field_for_rewards_they_are_refused(http: httpx.Client) -> None:
    tokens = {"token_ids": [5, 6, 7], "sampling_params": {"max_tokens": 3, "extra_args": {"otter_rewards": 1}}}
    for route, body in (("/v1/messages", CHAT | REWARDS), ("/inference/v1/generate", tokens)):
        response = http.post(route, json=body)
        assert response.status_code == 400
        assert "use /v1/completions" in response.json()["error"]["message"]
        for name in ("otter_guards", "otter_prompt"):
            response = http.post(route, json=json.loads(json.dumps(body).replace("otter_rewards", name)))
            assert response.status_code == 400
            assert f"no field for {name}" in response.json()["error"]["message"]
    ended = post(http, "/v1/messages", CHAT, GUARD)
    assert (ended["stop_sequence"], ended["usage"]["output_tokens"]) == (STOPPED, 1)


def test_innocent_clients_beside_others(http: httpx.Client) -> None:
    """Beams, log probabilities and grammars of clients that ask for nothing of ours."""
    innocent = [
        ("/v1/completions", {**GREEDY, "prompt": PROMPT, "use_beam_search": True, "n": 3}),
        ("/v1/completions", {**GREEDY, "prompt": PROMPT, "logprobs": 5}),
        ("/v1/completions", {**GREEDY, "prompt": PROMPT, "structured_outputs": {"choice": ["yes", "no"]}}),
        ("/v1/completions", {**GREEDY, "prompt": PROMPT, "echo": True, "logprobs": 2}),
        ("/v1/chat/completions", CHAT),
    ]
    alone = [post(http, route, body)["choices"] for route, body in innocent]

    async def together() -> list[Any]:
        async with httpx.AsyncClient(base_url=http.base_url, timeout=60) as session:
            asking = [
                {**GREEDY, "prompt": "Rain", "max_tokens": 60, "ignore_eos": True, **x} for x in (REWARDS, GUARD) * 4
            ]
            others = [asyncio.create_task(session.post("/v1/completions", json=body)) for body in asking]
            answers = await asyncio.gather(*(session.post(route, json=body) for route, body in innocent))
            for each in await asyncio.gather(*others):
                each.raise_for_status()
            return [answer.json()["choices"] for answer in answers]

    for before, beside in zip(alone, asyncio.run(together()), strict=True):
        for first, second in zip(before, beside, strict=True):
            assert rounded(first) == rounded(second)
    refused = http.post("/v1/completions", json={**innocent[0][1], **REWARDS})
    assert refused.status_code == 400
    assert "beam search" in refused.json()["error"]["message"]


def rounded(value: Any) -> Any:
    """Returns a choice with its numbers rounded: batches of other sizes round differently."""
    if isinstance(value, float):
        return round(value, 3)
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    return [rounded(each) for each in value] if isinstance(value, list) else value


def test_run_batch(folder: Path, tmp_path: Path) -> None:
    guarded = {"vllm_xargs": {**GUARD["vllm_xargs"], "otter_prompt": 1, "otter_guards": 1}}
    bodies = [{**CHAT, **REWARDS, "logprobs": True}, {**CHAT, **guarded}, {**CHAT, "vllm_xargs": {"otter_wait": 1}}]
    lines = [
        {"custom_id": str(index), "method": "POST", "url": "/v1/chat/completions", "body": body}
        for index, body in enumerate(bodies)
    ]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = [sys.executable, "-m", "vllm.entrypoints.launchers.run_batch", "--model", str(folder), *SETTINGS]
    files = ["-i", str(tmp_path / "in.jsonl"), "-o", str(tmp_path / "out.jsonl")]
    subprocess.run(command + files, env=os.environ | {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}, check=True)
    results = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    rewarded, ended, refused = sorted(results, key=lambda result: result["custom_id"])
    steps = rewarded["response"]["body"]["choices"][0]["logprobs"]["content"]
    (read,) = client.choices(rewarded["response"]["body"])
    assert len(read.rewards["guard"]) == len(steps) == 8
    (judged,) = client.choices(ended["response"]["body"])
    assert judged.stop_reason == STOPPED
    assert judged.prompt["guards"]["moderator"]["label"] in LABELS
    assert refused["response"]["status_code"] == 400
    assert "unknown argument otter_wait" in refused["error"]["error"]["message"]

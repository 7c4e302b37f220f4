"""The client reads what a server sends, with the packages of others and without any.

Those of `openai`, `langchain-openai` and `litellm` are tried where they are installed: `make test-clients`.
"""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.request import Request, urlopen

import pytest
from stand_in import REASON, TOKENS, reward, serving

from otterlm import client
from otterlm.errors import OtterError

EXAMPLES = Path(__file__).parent.parent / "examples"
ALL = {"vllm_xargs": {"otter_rewards": 1, "otter_guards": 1, "otter_prompt": 1}}
MESSAGES = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    with serving() as each:
        yield each


@pytest.fixture(scope="module")
def url(served: tuple[str, list[dict[str, Any]]]) -> str:
    return served[0]


def whole(index: int) -> client.Piece:
    """Returns a choice as the stand-in makes it."""
    tokens = TOKENS[index % 2]
    rewards = [reward(index, token) for token in range(len(tokens))]
    return client.Piece(
        choice=index,
        text="".join(tokens),
        rewards={"reward": rewards},
        stop_reason=REASON if index % 2 else None,
        guards={"guard": {"insult": [each / 10 for each in rewards]}},
        spans={},
        prompt={"rewards": {"reward": -1.5}},
    )


def fetch(address: str, **body: Any) -> list[str]:
    """Returns the lines of a response, by the standard library."""
    request = Request(address, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urlopen(request) as answer:
        return [line.decode() for line in answer]


@pytest.mark.parametrize("route", ["/completions", "/chat/completions"])
@pytest.mark.parametrize("n", [1, 3])
def test_without_a_package(url: str, route: str, n: int) -> None:
    body = {"prompt": "Hello", "messages": MESSAGES, "n": n, **ALL}
    (line,) = fetch(url + route, **body)
    choices = client.choices(json.loads(line))
    assert choices == [whole(index) for index in range(n)]
    pieces = list(client.read(fetch(url + route, **body, stream=True)))
    assert client.join(pieces) == choices
    assert [piece.choice for piece in pieces[:n]] == [*range(n)]  # mixed, as they come
    assert list(client.read(line.encode() for line in fetch(url + route, **body, stream=True))) == pieces


def test_a_response_without_choices(url: str) -> None:
    (line,) = fetch(f"{url}/responses", input="Hello", **ALL)
    expected = whole(1)._replace(choice=0)
    assert client.choices(json.loads(line)) == [expected]
    pieces = list(client.read(fetch(f"{url}/responses", input="Hello", stream=True, **ALL)))
    assert client.join(pieces) == [expected]
    assert [len(piece.rewards.get("reward", [])) for piece in pieces] == [1, 1, 0, 1]
    (line,) = fetch(f"{url}/responses", input="Hello")
    assert client.choices(json.loads(line)) == [expected._replace(rewards={}, guards={}, prompt={})]


def test_a_stream_read_at_once(url: str) -> None:
    lines = fetch(f"{url}/chat/completions", messages=MESSAGES, n=2, stream=True, **ALL)

    async def arriving() -> AsyncIterator[str]:
        for line in lines:
            await asyncio.sleep(0)
            yield line

    async def pieces() -> list[client.Piece]:
        return [piece async for piece in client.read_async(arriving())]

    assert asyncio.run(pieces()) == list(client.read(lines))


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        ({"choices": []}, "a whole response is read with client.choices"),
        ('{"choices": []}', "a whole response is read with client.choices"),
        (['{"choices": []}'], "was it requested with stream=True"),
        ([("id", "cmpl-1")], "no part of a stream"),
        (['data: {"error": {"message": "out of memory"}}'], "the server reports: out of memory"),
        ([{"type": "error", "message": "gone"}], "the server reports: gone"),
        ([{"type": "response.failed", "response": {"error": {"message": "no"}}}], "the server reports: no"),
    ],
)
def test_no_stream(stream: Any, message: str) -> None:
    with pytest.raises(OtterError, match=message):
        list(client.read(stream))


@pytest.mark.parametrize(
    ("response", "message"),
    [
        ({"error": {"message": "unknown argument otter_wait"}}, "the server reports: unknown argument otter_wait"),
        (iter([]), "a stream is read with client.read"),
    ],
)
def test_no_response(response: Any, message: str) -> None:
    with pytest.raises(OtterError, match=message):
        client.choices(response)


def test_fields_that_a_package_puts_elsewhere() -> None:
    elsewhere = {"otter": {"rewards": {"reward": [1.0]}}, "stop_reason": REASON}
    message = SimpleNamespace(content="a")
    choice = SimpleNamespace(index=1, message=message, provider_specific_fields=elsewhere)
    (read,) = client.choices(SimpleNamespace(choices=[choice]))
    assert read == (1, "a", {"reward": [1.0]}, REASON, {}, {}, {})


def test_with_openai(served: tuple[str, list[dict[str, Any]]]) -> None:
    openai = pytest.importorskip("openai")
    url, bodies = served
    server = openai.OpenAI(base_url=url, api_key="-")
    asked = {"model": "otter", "extra_body": ALL}
    for create, fields in (
        (server.chat.completions.create, {"messages": MESSAGES, "n": 2}),
        (server.completions.create, {"prompt": "Hello", "n": 2}),
        (server.responses.create, {"input": "Hello"}),
    ):
        choices = client.choices(create(**asked, **fields))
        assert bodies[-1]["vllm_xargs"] == ALL["vllm_xargs"]
        assert choices == ([whole(0), whole(1)] if "n" in fields else [whole(1)._replace(choice=0)])
        assert client.join(client.read(create(**asked, **fields, stream=True))) == choices
    assert [each["index"] for each in client.score(server, "otter", input=["a", "b"])] == [0, 1]

    async def at_once() -> tuple[list[client.Piece], list[dict[str, Any]]]:
        async with openai.AsyncOpenAI(base_url=url, api_key="-") as others:
            stream = await others.chat.completions.create(**asked, messages=MESSAGES, n=2, stream=True)
            pieces = [piece async for piece in client.read_async(stream)]
            return client.join(pieces), await client.score_async(others, "otter", messages=[MESSAGES])

    assert asyncio.run(at_once()) == ([whole(0), whole(1)], [{"index": 0, "rewards": {"reward": 0.0}}])


def run(name: str, url: str) -> list[str]:
    """Returns the lines that an example prints."""
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), "otter", "--url", url]
    environment = os.environ | {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}  # nothing is looked up
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def needs(package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(find_spec(package) is None, reason=f"{package} is not installed: make test-clients")


FIRST, SECOND = [0.0, 0.1], [1.0, 1.1, 1.2]


@needs("openai")
def test_the_example_of_openai(url: str) -> None:
    lines = run("client_openai", url)
    assert "piece of 1 ' swims' {'reward': [1.1]}" in lines
    for kind in ("choice", "whole"):
        assert f"{kind} 0 'An otter' {{'reward': {FIRST}}} None" in lines
        assert f"{kind} 1 'It swims away' {{'reward': {SECOND}}} {REASON}" in lines
    assert "scored {'reward': 0.1}" in lines
    assert lines[-1] == f"tokens {[[2, 3]] * 3}"


@needs("langchain_openai")
def test_the_example_of_langchain(url: str) -> None:
    lines = run("client_langchain", url)
    assert f"joined 'An otter' {{'rewards': {{'reward': {FIRST}}}}}" in lines
    assert f"whole 'It swims away' {{'rewards': {{'reward': {SECOND}}}}} {REASON}" in lines


@needs("litellm")
def test_the_example_of_litellm(url: str) -> None:
    lines = run("client_litellm", url)
    assert f"streamed 0 'An otter' {{'reward': {FIRST}}}" in lines
    assert f"streamed 1 'It swims away' {{'reward': {SECOND}}}" in lines
    assert f"whole 1 'It swims away' {{'reward': {SECOND}}} {REASON}" in lines

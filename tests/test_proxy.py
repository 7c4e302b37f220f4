"""Two servers behind one proxy: Otter's fields pass through, streamed or not, and so does a refusal."""

import json
from collections.abc import Iterator
from importlib import util
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from stand_in import TOKENS, reward, serving

from otterlm import client

EXAMPLE = Path(__file__).parent.parent / "examples" / "proxy.py"


@pytest.fixture(scope="module")
def behind() -> Iterator[tuple[str, list[list[dict[str, Any]]]]]:
    """Yields the proxy's address, and the bodies that each of two servers got."""
    spec = util.spec_from_file_location("proxy", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    example = util.module_from_spec(spec)
    spec.loader.exec_module(example)
    with serving() as (first, bodies), serving() as (second, others):
        servers = [each.removesuffix("/v1") for each in (first, second)]
        with example.make(servers, 0) as proxy:
            Thread(target=proxy.serve_forever, daemon=True).start()
            yield f"http://127.0.0.1:{proxy.server_address[1]}", [bodies, others]
            proxy.shutdown()


def test_two_servers_behind_one_proxy(behind: tuple[str, list[list[dict[str, Any]]]]) -> None:
    url, bodies = behind
    body = {"prompt": "Hello", "n": 2, "vllm_xargs": {"otter_rewards": 1}}
    for stream in (False, True, False, True):
        request = Request(f"{url}/v1/completions", json.dumps({**body, "stream": stream}).encode())
        request.add_header("Content-Type", "application/json")
        with urlopen(request) as answer:
            choices = client.join(client.read(answer)) if stream else client.choices(json.load(answer))
        for index, choice in enumerate(choices):
            assert choice.text == "".join(TOKENS[index])
            assert choice.rewards == {"reward": [reward(index, token) for token in range(len(TOKENS[index]))]}
    assert [len(each) for each in bodies] == [2, 2]
    assert all(each["vllm_xargs"] == {"otter_rewards": 1} for each in (*bodies[0], *bodies[1]))


def test_what_a_server_refuses(behind: tuple[str, list[list[dict[str, Any]]]]) -> None:
    with pytest.raises(HTTPError) as raised:
        urlopen(f"{behind[0]}/v1/models")  # the stand-in has no GET
    assert raised.value.code == 501

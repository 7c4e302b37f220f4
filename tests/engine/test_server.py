"""The server's middleware, before an application that answers as vLLM does."""

import asyncio
import json
from typing import Any

import pytest
from engines import make_folder

from otterlm.engines.vllm.channels import OFFSET
from otterlm.engines.vllm.server import STOPPED, Rewards


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("served"), signals=("reward", "guard"))


class Application:
    """Keeps what it is sent, and answers with what it was made with."""

    def __init__(self, pieces: list[bytes], kind: bytes) -> None:
        self.pieces = pieces
        self.kind = kind
        self.body: dict[str, Any] = {}
        self.length = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body = (await receive())["body"]
        self.body, self.length = json.loads(body), len(body)
        self.declared = int(dict(scope["headers"])[b"content-length"])
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", self.kind)]})
        for index, piece in enumerate(self.pieces):
            await send({"type": "http.response.body", "body": piece, "more_body": index + 1 < len(self.pieces)})


def ask(folder: Any, body: Any, pieces: list[bytes], kind: bytes = b"application/json", path: str = "/v1/completions"):
    """The application, the status and the pieces of the answer."""
    application, sent = Application(pieces, kind), []
    raw = json.dumps(body).encode()
    # The body may come in two pieces.
    messages = [
        {"type": "http.request", "body": raw[:7], "more_body": True},
        {"type": "http.request", "body": raw[7:], "more_body": False},
    ]

    async def receive() -> Any:
        return messages.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "path": path, "headers": [(b"content-length", str(len(raw)).encode())]}
    asyncio.run(Rewards(application, str(folder))(scope, receive, send))
    return application, sent[0]["status"], [message["body"] for message in sent[1:]]


def channels(folder: Any) -> dict[str, int]:
    return json.loads((folder / "config.json").read_text())["otter_channels"]


def answer(folder: Any, **choice: Any) -> bytes:
    reward = f"token_id:{channels(folder)['reward']}"
    steps = [{"token_id:9": -1.0, reward: OFFSET + 0.5}, {"token_id:8": -2.0, reward: OFFSET - 1.5}]
    return json.dumps({"choices": [{"text": "ab", "logprobs": {"top_logprobs": steps}, **choice}]}).encode()


def test_rewards_come_beside_the_text(folder):
    application, status, pieces = ask(folder, {"prompt": "a", "vllm_xargs": {"otter_rewards": 1}}, [answer(folder)])
    assert status == 200
    assert application.body["logprob_token_ids"] == list(channels(folder).values())
    assert application.body["logprobs"] == 0
    assert application.length == application.declared
    (choice,) = json.loads(pieces[0])["choices"]
    assert choice == {"text": "ab", "otter": {"rewards": {"reward": [0.5, -1.5]}}}


def test_a_stream_is_changed_line_by_line_wherever_it_is_cut(folder):
    line = b"data: " + answer(folder) + b"\n\n"
    whole = line + line + b"data: [DONE]\n\n"
    for cut in (1, 9, len(line) - 1, len(line), len(line) + 3, len(whole) - 2):
        _, _, pieces = ask(
            folder,
            {"prompt": "a", "stream": True, "vllm_xargs": {"otter_rewards": 1}},
            [whole[:cut], whole[cut:]],
            b"text/event-stream; charset=utf-8",
        )
        lines = b"".join(pieces).decode().split("\n\n")
        assert [json.loads(text[6:])["choices"][0]["otter"] for text in lines[:2]] == [
            {"rewards": {"reward": [0.5, -1.5]}}
        ] * 2
        assert lines[2:] == ["data: [DONE]", ""]


def test_a_chat(folder):
    reward = f"token_id:{channels(folder)['reward']}"
    steps = [{"token": "token_id:9", "top_logprobs": [{"token": reward, "logprob": OFFSET + 2.0}]}]
    body = json.dumps({"choices": [{"delta": {"content": "a"}, "logprobs": {"content": steps}}]}).encode()
    asked = {"messages": [], "vllm_xargs": {"otter_rewards": 1}}
    application, _, pieces = ask(folder, asked, [body], path="/v1/chat/completions")
    assert application.body["logprobs"] is True
    assert json.loads(pieces[0])["choices"][0]["otter"] == {"rewards": {"reward": [2.0]}}


def test_a_stop_by_the_guard_says_so(folder):
    guard = channels(folder)["guard"]
    asked = {"prompt": "a", "stop_token_ids": [5], "vllm_xargs": {"otter_threshold": 0.5, "otter_guard": "guard"}}
    application, _, pieces = ask(folder, asked, [answer(folder, stop_reason=guard, finish_reason="stop")])
    assert application.body["stop_token_ids"] == [5, guard]
    assert json.loads(pieces[0])["choices"][0]["stop_reason"] == STOPPED


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"vllm_xargs": {"otter_weight": "x"}}, "finite"),
        ({"vllm_xargs": {"otter_weight": 1.0, "otter_signal": "nobody"}}, "unknown signal"),
        ({"vllm_xargs": {"otter_weight": 1.0, "otter_signal": "reward", "otter_top_k": 10**6}}, "whole number"),
        ({"vllm_xargs": {"otter_rewards": 1}, "logprobs": 3}, "cannot both"),
    ],
)
def test_bad_settings_are_a_400_with_a_message(folder, body, message):
    application, status, pieces = ask(folder, {"prompt": "a", **body}, [b"{}"])
    assert status == 400
    assert message in json.loads(pieces[0])["error"]["message"]
    assert application.body == {}


@pytest.mark.parametrize("body", [{"prompt": "a"}, {"prompt": "a", "vllm_xargs": {"mine": 1}}, {"vllm_xargs": 3}, [1]])
def test_what_is_not_ours_passes_unseen(folder, body):
    application, status, pieces = ask(folder, body, [answer(folder)])
    assert application.body == body
    assert status == 200
    assert pieces == [answer(folder)]

"""Stands in for a vLLM server with an exported folder: the same fields and pieces, and numbers that tests know."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

TOKENS = (("An", " otter"), ("It", " swims", " away"))
"""The tokens of choices with even and odd indices."""
REASON = "otter: insult"
"""The stop reason of odd choices."""


def reward(choice: int, token: int) -> float:
    """Returns the reward beside a token of a choice."""
    return choice + token / 10


def numbers(body: dict[str, Any], choice: int, tokens: range) -> dict[str, Any]:
    """Returns what a request wants beside some tokens."""
    wanted = body.get("vllm_xargs", {})
    beside: dict[str, Any] = {}
    if wanted.get("otter_rewards"):
        beside["rewards"] = {"reward": [reward(choice, token) for token in tokens]}
    if wanted.get("otter_guards"):
        beside["guards"] = {"guard": {"insult": [reward(choice, token) / 10 for token in tokens]}}
    if wanted.get("otter_prompt") and tokens.start == 0:
        beside["prompt"] = {"rewards": {"reward": -1.5}}
    return {"otter": beside} if beside else {}


def ending(choice: int) -> dict[str, Any]:
    return {"finish_reason": "stop", "stop_reason": REASON if choice % 2 else None}


def choice_of(body: dict[str, Any], chat: bool, index: int) -> dict[str, Any]:
    """Returns a whole choice."""
    tokens = TOKENS[index % 2]
    text = "".join(tokens)
    message = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
    return {"index": index, "logprobs": None, **message, **numbers(body, index, range(len(tokens))), **ending(index)}


def pieces_of(body: dict[str, Any], chat: bool) -> Iterator[dict[str, Any]]:
    """Yields the choices' tokens in turn, as an engine does that computes them together.

    Ends come without a token, as after a guard's stop.
    """
    count = body.get("n") or 1
    for index in range(count if chat else 0):
        yield {"index": index, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
    for step in range(max(map(len, TOKENS))):
        for index in range(count):
            if step < len(tokens := TOKENS[index % 2]):
                delta = {"delta": {"content": tokens[step]}} if chat else {"text": tokens[step]}
                beside = numbers(body, index, range(step, step + 1))
                yield {"index": index, **delta, **beside, "finish_reason": None, "stop_reason": None}
    for index in range(count):
        yield {"index": index, **({"delta": {"content": ""}} if chat else {"text": ""}), **ending(index)}


def completion(chat: bool, choices: list[Any], chunk: str = "") -> dict[str, Any]:
    kind = f"chat.completion{chunk}" if chat else "text_completion"
    return {"id": "cmpl-1", "object": kind, "created": 1, "model": "otter", "choices": choices}


def response(body: dict[str, Any]) -> dict[str, Any]:
    """Returns a response of `/v1/responses`: the second choice of the others."""
    content = [{"type": "output_text", "text": "".join(TOKENS[1]), "annotations": []}]
    message = {"type": "message", "id": "m", "role": "assistant", "status": "completed", "content": content}
    beside = numbers(body, 1, range(len(TOKENS[1])))
    beside.setdefault("otter", {})["stop_reason"] = REASON
    made = {"id": "r", "object": "response", "created_at": 1, "model": "otter", "output": [message], "tools": []}
    return {**made, "parallel_tool_calls": False, "tool_choice": "auto", **beside}


def events_of(body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields the events of the same response. The numbers of the last token come with the end alone."""
    whole = response(body)
    yield {"type": "response.created", "response": {**whole, "output": [], "otter": None}}
    for step, token in enumerate(TOKENS[1]):
        beside = numbers(body, 1, range(step, step + 1)) if step < len(TOKENS[1]) - 1 else {}
        yield {"type": "response.output_text.delta", "item_id": "m", "delta": token, **beside}
    yield {"type": "response.completed", "response": whole}


class Handler(BaseHTTPRequestHandler):
    """Answers requests, and holds their bodies for the test."""

    def log_message(self, *_: Any) -> None:
        """Writes nothing."""

    def do_POST(self) -> None:
        """Answers by the route."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.bodies.append(body)  # type: ignore[attr-defined]
        chat = self.path == "/v1/chat/completions"
        if self.path == "/v1/otter/score":
            texts = [body["input"]] if isinstance(body.get("input"), str) else body.get("input") or body["messages"]
            self.send({"data": [{"index": index, "rewards": {"reward": index / 10}} for index in range(len(texts))]})
        elif self.path == "/v1/responses":
            self.stream(events_of(body)) if body.get("stream") else self.send(response(body))
        elif body.get("stream"):
            self.stream(completion(chat, [piece], ".chunk") for piece in pieces_of(body, chat))
        else:
            usage = {"prompt_tokens": 2, "completion_tokens": 5, "total_tokens": 7}
            choices = [choice_of(body, chat, index) for index in range(body.get("n") or 1)]
            self.send(completion(chat, choices) | {"usage": usage})

    def stream(self, events: Iterator[dict[str, Any]]) -> None:
        self.begin("text/event-stream")
        for event in events:
            name = f"event: {event['type']}\n" if "type" in event else ""
            self.wfile.write(f"{name}data: {json.dumps(event)}\n\n".encode())
        self.wfile.write(b"data: [DONE]\n\n")

    def send(self, answer: dict[str, Any]) -> None:
        self.begin("application/json")
        self.wfile.write(json.dumps(answer).encode())

    def begin(self, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.end_headers()


@contextmanager
def serving() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Serves on a free port. Yields the address, with `/v1`, and the bodies of the requests so far."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        bodies: list[dict[str, Any]] = []
        server.bodies = bodies  # type: ignore[attr-defined]
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/v1", bodies
        finally:
            server.shutdown()

"""The OpenAI-compatible server's two routes, with rewards beside the text.

vLLM lets a plugin of the group `vllm.endpoint_plugins` see the application, if `VLLM_PLUGINS` names it; ours puts a
middleware before the completion routes. It adds to a request with `otter_` arguments what they need
(`otterlm.engines.vllm.settings`), and in the answer turns the channels' log probabilities into

    choice["otter"] = {"rewards": {NAME: [one number a token]}}

beside the delta, and the stop by a guard into `stop_reason: "otter: reward under threshold"`.
"""

import json
from argparse import Namespace
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from transformers import AutoConfig

from otterlm.engines.exported import read_kinds
from otterlm.engines.vllm.channels import decode
from otterlm.engines.vllm.settings import PREFIX, sampling_arguments
from otterlm.errors import OtterError

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

ROUTES = ("/v1/chat/completions", "/v1/completions")
STOPPED = "otter: reward under threshold"


class OpenAIRoutes:
    """The plugin, see vLLM's `EndpointPlugin`."""

    name = "otter"
    required_tasks = ("generate",)

    def attach_router(self, app: Any) -> None:
        """Puts the middleware before the routes."""
        app.add_middleware(Rewards, folder=app.state.args.model)

    async def init_state(self, engine_client: Any, state: Any, args: Namespace) -> None:
        """Nothing: the engine is not reached from here."""


class Rewards:
    """The middleware.

    Args:
        app: what comes after.
        folder: of the served model; of one that was not exported every request passes unseen.
    """

    def __init__(self, app: Any, folder: str) -> None:
        self._app = app
        config: Any = AutoConfig.from_pretrained(folder)
        self._kinds = read_kinds(config) if getattr(config, "otter", None) else None
        self._channels: dict[str, int] = getattr(config, "otter_channels", None) or {}
        self._vocabulary_size: int = config.vocab_size

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """ASGI."""
        if self._kinds is None or scope["type"] != "http" or scope["path"] not in ROUTES:
            await self._app(scope, receive, send)
            return
        body = await _read(receive)
        try:
            asked = json.loads(body)
            own = {name: value for name, value in asked["vllm_xargs"].items() if name.startswith(PREFIX)}
        except (ValueError, KeyError, TypeError, AttributeError):
            own = {}  # not ours, or the server's to refuse
        if own:
            try:
                needs = sampling_arguments(own, self._kinds, self._channels, self._vocabulary_size)
                if "logprob_token_ids" in needs and asked.get("logprobs"):
                    raise OtterError("otter_rewards and logprobs cannot both be asked for")
            except OtterError as error:
                await _refuse(send, str(error))
                return
            chat = scope["path"] == ROUTES[0]
            if "logprob_token_ids" in needs:
                needs |= {"logprobs": True if chat else 0, "return_tokens_as_token_ids": True}
            guards = needs.get("stop_token_ids", [])
            needs["stop_token_ids"] = [*(asked.get("stop_token_ids") or ()), *guards]
            body = json.dumps(asked | needs).encode()
            send = _Rewriter(send, self._channels, guards).send
            headers = [pair for pair in scope["headers"] if pair[0].lower() != b"content-length"]
            scope = {**scope, "headers": [*headers, (b"content-length", str(len(body)).encode())]}
        await self._app(scope, _Replay(body, receive).receive, send)


async def _read(receive: Receive) -> bytes:
    pieces = []
    while True:
        message = await receive()
        pieces.append(message.get("body", b""))
        if message["type"] != "http.request" or not message.get("more_body"):
            return b"".join(pieces)


async def _refuse(send: Send, what: str) -> None:
    error = {"error": {"message": what, "type": "BadRequestError", "param": None, "code": 400}}
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 400, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(error).encode()})


class _Replay:
    """Gives a body that was read already, and then what comes: a disconnection cancels the request."""

    def __init__(self, body: bytes, receive: Receive) -> None:
        self._body: bytes | None = body
        self._receive = receive

    async def receive(self) -> Message:
        if self._body is None:
            return await self._receive()
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": False}


class _Rewriter:
    """Changes an answer on its way out: of a stream line by line, else as a whole."""

    def __init__(self, send: Send, channels: dict[str, int], guards: list[int]) -> None:
        self._send = send
        self._channels = channels
        self._guards = guards
        self._start: Message = {}
        self._streams = False
        self._waiting = b""

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            kinds = [value for name, value in message["headers"] if name.lower() == b"content-type"]
            self._streams = any(kind.startswith(b"text/event-stream") for kind in kinds)
            self._start = message
            if self._streams:
                await self._send(message)
            return
        body, more = message.get("body", b""), message.get("more_body", False)
        self._waiting += body
        if self._streams:
            *lines, self._waiting = self._waiting.split(b"\n")
            lines = [self._line(line) for line in lines]
            whole = b"".join(line + b"\n" for line in lines)
            if not more:
                whole, self._waiting = whole + self._waiting, b""
            await self._send({"type": "http.response.body", "body": whole, "more_body": more})
        elif not more:
            whole = self._json(self._waiting)
            headers = [pair for pair in self._start["headers"] if pair[0].lower() != b"content-length"]
            await self._send({**self._start, "headers": [*headers, (b"content-length", str(len(whole)).encode())]})
            await self._send({"type": "http.response.body", "body": whole})

    def _line(self, line: bytes) -> bytes:
        if not line.startswith(b"data: {"):
            return line
        return b"data: " + self._json(line[len(b"data: ") :])

    def _json(self, text: bytes) -> bytes:
        try:
            answer = json.loads(text)
        except ValueError:
            return text
        for choice in answer.get("choices", ()):
            logprobs = choice.pop("logprobs", None)
            rewards = self._rewards(logprobs) if logprobs else {}
            if rewards:
                choice["otter"] = {"rewards": rewards}
            if choice.get("stop_reason") in self._guards:
                choice["stop_reason"] = STOPPED
        return json.dumps(answer, ensure_ascii=False).encode()

    def _rewards(self, logprobs: dict[str, Any]) -> dict[str, list[float]]:
        if "content" in logprobs:  # of a chat
            steps = [
                {top["token"]: top["logprob"] for top in step["top_logprobs"]} for step in logprobs["content"] or ()
            ]
        else:
            steps = logprobs["top_logprobs"] or []
        names = {name: f"token_id:{token}" for name, token in self._channels.items()}
        return {
            name: [decode(step[token]) for step in steps]
            for name, token in names.items()
            if steps and token in steps[0]
        }

"""Checks settings where a request enters the server, and joins numbers to the response where it is made.

Both happen on the handlers of vLLM's server, which the HTTP routes (under any path) and `vllm run-batch` share. In a
response, each choice has

    choice["otter"] = {"rewards": {NAME: [one number a token]}}

beside its text or delta, and what else `otterlm.engines.rewards` has. A response of `/v1/responses` has no choices:
there it is `response["otter"]`, and in a stream also `otter` beside each delta.
"""

import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

from otterlm.engines.requests import Served, refuse_stray
from otterlm.engines.rewards import Joiner, Numbers, is_ours
from otterlm.engines.settings import PREFIX, RETURNED
from otterlm.engines.vllm.events import log_event
from otterlm.engines.vllm.metrics import count_refused
from otterlm.errors import OtterError

Read = Callable[[Any], Served]
"""A function from the engine's configuration to what it serves."""


async def enter(read: Read, original: Any, handler: Any, request: Any, http: Any = None, *rest: Any) -> Any:
    """Answers a request with 400 and the reason if its settings cannot be honoured."""
    try:
        refuse_stray(await _unknown_fields(request, http))
        settings = read(handler.engine_client.vllm_config).settings(_arguments(request))
        if settings.asks and getattr(request, "use_beam_search", False):
            raise OtterError("beam search cannot be steered, guarded or given rewards: leave use_beam_search off")
        if settings.returns and type(handler).__name__ in NO_FIELDS:
            name = next(name for name in RETURNED if getattr(settings, name))
            raise OtterError(f"this route has no field for otter_{name}: use /v1/completions or /v1/chat/completions")
    except OtterError as error:
        count_refused()
        identity = None if http is None else http.headers.get("X-Request-Id")
        log_event("request_refused", request=identity or getattr(request, "request_id", None), reason=str(error))
        return handler.create_error_response(str(error))
    return await original(handler, request, http, *rest)


NO_FIELDS = ("AnthropicServingMessages", "CohereServingChatV2", "ServingTokens")
"""The responses of these handlers can have no further fields."""


def _arguments(request: Any) -> dict[str, Any]:
    sampling = getattr(request, "sampling_params", None)
    return getattr(request, "vllm_xargs", None) or getattr(sampling, "extra_args", None) or {}


async def _unknown_fields(request: Any, http: Any) -> Iterable[str]:
    """Returns the fields of a request that its class does not know. Where it drops them, the body is read again."""
    if request.model_extra is not None or http is None:
        return request.model_extra or ()
    body = await http.json()
    return [field for field in body if field not in type(request).model_fields]


class Unseen(str):
    """Is the empty text of a choice that has no tokens. It counts as true, as vLLM leaves out pieces without a text."""

    __slots__ = ()

    def __bool__(self) -> bool:
        return True


def _wants(request: Any) -> bool:
    return any(_arguments(request).get(PREFIX + name) for name in RETURNED)


# -- responses with choices --------------------------------------------------------------------------------------------


async def _watch(results: AsyncIterator[Any], joiner: Joiner, choices: int = 0, first: int = 0) -> AsyncIterator[Any]:
    """Passes an engine's outputs on, and their numbers to the joiner.

    Args:
        results: outputs, or (index of the prompt, output) where a request has several prompts.
        joiner: gets the numbers.
        choices: of each prompt.
        first: the index of the first choice.
    """
    async with contextlib.aclosing(results):  # type: ignore[type-var]
        async for result in results:
            prompt, output = result if isinstance(result, tuple) else (0, result)
            for each in output.outputs:
                joiner.add(first + prompt * choices + each.index, getattr(each, "otter", None))
                if is_ours(each.stop_reason) and not each.text and not each.token_ids:
                    each.text = Unseen()
            yield result


async def _rewrite(events: AsyncIterator[str], joiner: Joiner) -> AsyncIterator[str]:
    """Puts the numbers into the choices of server-sent events."""
    async with contextlib.aclosing(events):  # type: ignore[type-var]
        async for event in events:
            if not event.startswith("data: {"):
                yield event
                continue
            answer = json.loads(event.removeprefix("data: "))
            yield f"data: {json.dumps(answer, ensure_ascii=False)}\n\n" if joiner.fill(answer) else event


def _fill(response: Any, joiner: Joiner) -> Any:
    for choice in getattr(response, "choices", ()):  # an error has none
        if numbers := joiner.take(choice.index):
            choice.otter = numbers
    return response


def completion_stream(
    _: Read, original: Any, handler: Any, request: Any, inputs: Any, results: Any, *rest: Any, **named: Any
) -> Any:
    """Wraps `/v1/completions`, streamed."""
    joiner = Joiner()
    results = _watch(results, joiner, choices=request.n or 1)
    events = original(handler, request, inputs, results, *rest, **named)
    return _rewrite(events, joiner) if _wants(request) else events


def completion(_: Read, original: Any, handler: Any, batch: Any, request: Any, *rest: Any, **named: Any) -> Any:
    """Wraps `/v1/completions`, not streamed. The choices are those of all prompts, one after the other."""
    joiner = Joiner()
    # An echo of the prompt alone has no tokens of the model.
    if _wants(request) and not (request.echo and request.max_tokens == 0):
        for index, each in enumerate(each for output in batch for each in output.outputs):
            joiner.add(index, getattr(each, "otter", None))
    return _fill(original(handler, batch, request, *rest, **named), joiner)


def stream(_: Read, original: Any, handler: Any, request: Any, results: Any, *rest: Any, **named: Any) -> Any:
    """Wraps `/v1/chat/completions`, streamed."""
    joiner = Joiner()
    events = original(handler, request, _watch(results, joiner), *rest, **named)
    return _rewrite(events, joiner) if _wants(request) else events


async def whole(_: Read, original: Any, handler: Any, request: Any, results: Any, *rest: Any, **named: Any) -> Any:
    """Wraps the same, not streamed, and a batch of chats, with a stream of outputs and a choice for each."""
    joiner = Joiner()
    if _wants(request):
        if isinstance(results, list):
            results = [_watch(each, joiner, first=index) for index, each in enumerate(results)]
        else:
            results = _watch(results, joiner)
    return _fill(await original(handler, request, results, *rest, **named), joiner)


# -- responses without choices -----------------------------------------------------------------------------------------


class _Turns:
    """Collects the numbers of a response of `/v1/responses`, which may take several turns of the engine.

    Args:
        context: of the response; every output is appended to it.
    """

    def __init__(self, context: Any) -> None:
        self.latest, self.all = Joiner(), Joiner()
        self.stop_reason: Any = None
        self._append = context.append_output
        context.append_output = self._add
        context.otter = self

    def _add(self, output: Any) -> None:
        for each in output.outputs:
            for joiner in (self.latest, self.all):
                joiner.add(0, getattr(each, "otter", None))
            self.stop_reason = each.stop_reason
        self._append(output)

    def fill(self, response: Any) -> Any:
        extra: Numbers = self.all.take(0) or {}
        if is_ours(self.stop_reason):
            extra["stop_reason"] = self.stop_reason
        if extra:
            response.otter = extra
        return response


def _turns(request: Any, context: Any) -> _Turns | None:
    if any(name.startswith("otter_") for name in _arguments(request)):
        return getattr(context, "otter", None) or _Turns(context)
    return None


async def responses_stream(
    _: Read,
    original: Any,
    handler: Any,
    request: Any,
    params: Any,
    results: Any,
    context: Any,
    *rest: Any,
    **named: Any,
) -> AsyncIterator[Any]:
    """Wraps `/v1/responses`, streamed. The events are objects."""
    turns = _turns(request, context)
    events = original(handler, request, params, results, context, *rest, **named)
    async with contextlib.aclosing(events):
        async for event in events:
            if turns and event.type.endswith(".delta") and (numbers := turns.latest.take(0)):
                event.otter = numbers
            yield event


async def responses(
    _: Read,
    original: Any,
    handler: Any,
    request: Any,
    params: Any,
    results: Any,
    context: Any,
    *rest: Any,
    **named: Any,
) -> Any:
    """Wraps `/v1/responses`, not streamed. A stream ends with such a response, too."""
    turns = _turns(request, context)
    response = await original(handler, request, params, results, context, *rest, **named)
    return turns.fill(response) if turns and hasattr(response, "output") else response

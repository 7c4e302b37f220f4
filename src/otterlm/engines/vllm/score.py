"""Adds a route to the server that scores texts: `POST /v1/otter/score`, with

    {"model": NAME, "input": "a text" or ["several", "texts"]}
    {"model": NAME, "messages": [...]}      a dialogue, or a list of dialogues

and `"tokens": true` for the numbers beside every token. A text is read as the prompt of a request for one token, by the
handlers of vLLM's own routes. So a text has what `otter_prompt` gives, see `otterlm.engines.rewards`.

vLLM adds the routes of plugins only where `VLLM_PLUGINS` names them, as `otter serve` does.
"""

import asyncio
import uuid
from collections.abc import Mapping
from typing import Any, ClassVar

from otterlm.engines.rewards import PROMPT
from otterlm.engines.vllm import adapters, openapi
from otterlm.engines.vllm.upstream.names import ChatCompletionRequest, CompletionRequest
from otterlm.errors import OtterError

FIELDS = ("model", "input", "messages", "tokens")


class ScoreRoute:
    """Is what vLLM calls an endpoint plugin. It adds all of Otter's routes."""

    name = "otter"
    required_tasks: ClassVar = ("generate",)

    def attach_router(self, app: Any) -> None:
        """Adds the routes, and describes them."""
        app.add_route(openapi.SCORE, answer, methods=["POST"])
        adapters.attach(app)
        openapi.attach(app)

    async def init_state(self, *_: Any) -> None:
        """Needs nothing: the handlers are read with each request."""


async def answer(http: Any) -> Any:
    """Answers a request over HTTP."""
    from starlette.responses import JSONResponse

    handler = http.app.state.openai_serving_completion
    try:
        result = await score(http.app.state, await http.json(), http.headers.get("X-Request-Id"))
    except (OtterError, ValueError) as error:  # also of JSON, and of the fields of vLLM's requests
        result = handler.create_error_response(str(error))
    if isinstance(result, dict):
        return JSONResponse(result)
    return JSONResponse(result.model_dump(), result.error.code)


async def score(state: Any, body: Any, identity: str | None = None) -> Any:
    """Scores what a request holds.

    Args:
        state: of the server, with the handlers of its routes.
        body: of the request.
        identity: the client's name of the request; None: a random one. It is the response's, and the engine's.

    Returns:
        The response, a dictionary; or vLLM's error.

    Raises:
        OtterError: the request has another field, or no texts.
    """
    if not isinstance(body, Mapping) or ("input" in body) == ("messages" in body):
        raise OtterError("give either input, a text or a list of texts, or messages, a dialogue or a list of dialogues")
    if unknown := [name for name in body if name not in FIELDS]:
        raise OtterError(f"unknown field {unknown[0]}; there are: {', '.join(FIELDS)}")
    texts = body.get("input", "")
    if not isinstance(texts, str) and not (isinstance(texts, list) and all(isinstance(each, str) for each in texts)):
        raise OtterError("input must be a text or a list of texts")
    tokens = body.get("tokens", False)
    if not isinstance(tokens, bool):
        raise OtterError("tokens must be true or false")
    identity = identity or uuid.uuid4().hex
    settings = {
        "model": body.get("model"),
        "max_tokens": 1,
        "temperature": 0,
        "return_token_ids": True,
        "vllm_xargs": {"otter_prompt_tokens" if tokens else "otter_prompt": 1},
    }
    if "input" in body:
        request = CompletionRequest(prompt=body["input"], request_id=identity, **settings)
        answers = [await state.openai_serving_completion.create_completion(request)]
    else:
        requests = [
            ChatCompletionRequest(**_dialogue(each), request_id=f"{identity}-{index}", **settings)
            for index, each in enumerate(_dialogues(body["messages"]))
        ]
        answers = await asyncio.gather(*map(state.openai_serving_chat.create_chat_completion, requests))
    for each in answers:
        if getattr(each, "error", None) is not None:
            return each
    read = [(_prompt_ids(each, choice), choice.otter[PROMPT]) for each in answers for choice in each.choices]
    data = [
        {"index": index, **numbers, **({"token_ids": ids} if tokens else {})}
        for index, (ids, numbers) in enumerate(read)
    ]
    used = sum(each.usage.prompt_tokens for each in answers)
    return {
        "id": f"score-{identity}",
        "object": "list",
        "model": answers[0].model,
        "data": data,
        "usage": {"prompt_tokens": used, "total_tokens": used},
    }


def _dialogues(messages: Any) -> list[Any]:
    if not isinstance(messages, list) or not messages:
        raise OtterError("messages must be a dialogue, a list of messages, or a list of dialogues")
    return messages if all(isinstance(each, list) for each in messages) else [messages]


def _dialogue(messages: list[Any]) -> dict[str, Any]:
    """Returns the fields of a chat. What the assistant said last is read to its end; a question, as it is answered."""
    if not messages or not all(isinstance(each, Mapping) for each in messages):
        raise OtterError("a dialogue must be a list of messages, each with a role and content")
    begun = messages[-1].get("role") == "assistant"
    return {"messages": messages, "add_generation_prompt": not begun, "continue_final_message": begun}


def _prompt_ids(answer: Any, choice: Any) -> list[int]:
    """Returns the prompt's tokens: completions have them in each choice, chats in the response."""
    ids: list[int] = getattr(choice, "prompt_token_ids", None) or answer.prompt_token_ids
    return ids

"""Wraps vLLM's front end: requests are checked as they enter, and numbers join their completions."""

import functools
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from otterlm.engines.rewards import extend, part
from otterlm.engines.vllm import metrics, routes
from otterlm.engines.vllm.events import log_end, log_event
from otterlm.engines.vllm.upstream.adapters import STATE, of_state
from otterlm.engines.vllm.upstream.wrapping import END, FIELD, served, set_slots, wrap
from otterlm.errors import OtterError

OPENAI = "vllm.entrypoints.openai"
HANDLERS: dict[tuple[str, str], dict[str, Callable[..., Any]]] = {
    (f"{OPENAI}.completion.serving", "OpenAIServingCompletion"): {
        "create_completion": routes.enter,
        "completion_stream_generator": routes.completion_stream,
        "request_output_to_completion_response": routes.completion,
    },
    (f"{OPENAI}.chat_completion.serving", "OpenAIServingChat"): {
        "create_chat_completion": routes.enter,
        "chat_completion_stream_generator": routes.stream,
        "chat_completion_full_generator": routes.whole,
    },
    (f"{OPENAI}.chat_completion.batch_serving", "OpenAIServingChatBatch"): {
        "create_batch_chat_completion": routes.enter,
        "chat_completion_full_generator_batch": routes.whole,
    },
    (f"{OPENAI}.responses.serving", "OpenAIServingResponses"): {
        "create_responses": routes.enter,
        "responses_stream_generator": routes.responses_stream,
        "responses_full_generator": routes.responses,
    },
    ("vllm.entrypoints.anthropic.serving", "AnthropicServingMessages"): {"create_messages": routes.enter},
    ("vllm.entrypoints.cohere.serving", "CohereServingChatV2"): {"create_chat_v2": routes.enter},
    ("vllm.entrypoints.scale_out.token_in_token_out.serving", "ServingTokens"): {"serve_tokens": routes.enter},
}
"""These methods of the server's handlers are wrapped: where requests enter, and where responses are made."""


def check(original: Any, processor: Any, params: Any, *rest: Any, **named: Any) -> Any:
    """Refuses a request whose settings are wrong, before it reaches the engine."""
    try:
        settings = served(processor.vllm_config).settings(getattr(params, "extra_args", None))
    except OtterError as error:
        metrics.count_refused()
        log_event("request_refused", reason=str(error))
        raise import_module("vllm.exceptions").VLLMValidationError(str(error)) from error
    if settings.prompt_tokens:
        params.skip_reading_prefix_cache = True  # of tokens in the cache nothing could be read
    if settings.steer is not None:
        metrics.count_steered(settings.steer)
    return original(processor, params, *rest, **named)


def receive(original: Any, processor: Any, outputs: Any, *rest: Any, **named: Any) -> Any:
    """Removes the numbers from the engine's outputs, and stores them with their requests."""
    for output in outputs:
        parameters = output.kv_transfer_params
        if parameters and STATE in parameters:  # of no request
            set_slots(processor.otter, of_state(parameters[STATE]))
        if parameters and not parameters.keys().isdisjoint((FIELD, END)):
            output.kv_transfer_params = {k: v for k, v in parameters.items() if k not in (FIELD, END)} or None
            state = processor.request_states.get(output.request_id)
            if state and FIELD in parameters:
                extend(vars(state).setdefault(FIELD, {}), parameters[FIELD])
            if END in parameters:
                metrics.count_end(parameters[END])
                log_end(parameters[END], getattr(state, "external_req_id", None))
    return original(processor, outputs, *rest, **named)


def complete(original: Any, state: Any, *rest: Any, **named: Any) -> Any:
    """Puts the numbers beside the tokens of a completion; of a streamed one, the latest numbers."""
    completion = original(state, *rest, **named)
    if FIELD in vars(state):
        end = state.detokenizer.num_output_tokens()
        setattr(completion, FIELD, part(state.otter, end - len(completion.token_ids), end))
    return completion


def merge(original: Any, output: Any, later: Any, aggregate: bool) -> None:
    """Joins streamed outputs that were not fetched in time."""
    earlier = {each.index: each for each in output.outputs}
    original(output, later, aggregate)
    for each in later.outputs if aggregate else ():
        if each.index in earlier and (numbers := getattr(each, FIELD, None)):
            extend(vars(earlier[each.index]).setdefault(FIELD, {}), numbers)


def serve(original: Any, *args: Any, **named: Any) -> None:
    """Prepares a server's routes."""
    for (path, owner), methods in HANDLERS.items():
        if owner.startswith("Cohere") and not find_spec("cohere"):  # vLLM does without its route, too
            continue
        for method, around in methods.items():
            wrap(path, owner, method, functools.partial(around, served))
    original(*args, **named)
    vars(args[0].output_processor)[FIELD] = args[0].vllm_config

"""Contains all of vLLM 0.32 that Otter depends on and that another version may change.

That is where names come from, which methods are wrapped, and which attributes of vLLM's objects are read and set. No
other file imports from vLLM. Numbers travel on vLLM's objects, beside what it puts there:

    worker      `ModelRunnerOutput.otter`             by request, rows as they were sampled
    scheduler   `EngineCoreOutput.kv_transfer_params` under `otter`, a field that every transport carries
    front end   `RequestState.otter`                  since the request began
                `CompletionOutput.otter`              as long as its `token_ids`
    server      `otter` in the choices of a response, see `routes`
"""

import functools
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from otterlm.engines.guard import Track
from otterlm.engines.readings import Readings
from otterlm.engines.requests import Served
from otterlm.engines.rewards import extend, part
from otterlm.engines.vllm import routes
from otterlm.engines.vllm.architectures import ARCHITECTURES
from otterlm.engines.vllm.refusals import refuse_config
from otterlm.engines.vllm.watching import Watcher
from otterlm.errors import OtterError

FIELD = "otter"
"""Otter's attribute, or key, on objects of vLLM."""

HOME = {
    "Attention": "vllm.model_executor.layers.attention",
    "BatchUpdate": "vllm.v1.sample.logits_processor",
    "LlamaForCausalLM": "vllm.model_executor.models.llama",
    "LogitsContext": "vllm.v1.worker.gpu.sample.logits_processor.interface",
    "LogitsProcessor": "vllm.v1.sample.logits_processor",
    "MistralForCausalLM": "vllm.model_executor.models.mistral",
    "ModelRegistry": "vllm",
    "Qwen2ForCausalLM": "vllm.model_executor.models.qwen2",
    "Qwen3ForCausalLM": "vllm.model_executor.models.qwen3",
    "SamplingParams": "vllm.sampling_params",
    "VllmConfig": "vllm.config",
    "current_platform": "vllm.platforms",
    "dispatch_cpu_unquantized_gemm": "vllm.model_executor.layers.utils",
    "get_forward_context": "vllm.forward_context",
    "get_tensor_model_parallel_rank": "vllm.distributed",
    "get_tensor_model_parallel_world_size": "vllm.distributed",
    "process_dict_updates": "vllm.v1.sample.logits_processor.builtin",
    "tensor_model_parallel_all_gather": "vllm.distributed",
    "tensor_model_parallel_all_reduce": "vllm.distributed",
}
"""The names' modules. They are imported when a name is first read: most processes need few of them."""


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


def __getattr__(name: str) -> Any:
    if name == "LogitsProcessorV2":  # the same name, for the second model runner
        return import_module(HOME["LogitsContext"]).LogitsProcessor
    if name not in HOME:
        raise AttributeError(name)
    return getattr(import_module(HOME[name]), name)


def wrap(path: str, owner: str, method: str, around: Callable[..., Any]) -> None:
    """Replaces a method of a class of vLLM by `around(original, self, ...)`, once in a process."""
    cls = getattr(import_module(path), owner)
    original = getattr(cls, method)
    if hasattr(original, "__otter__"):
        return

    @functools.wraps(original)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return around(original, *args, **kwargs)

    wrapper.__otter__ = True  # type: ignore[attr-defined]
    setattr(cls, method, wrapper)


def install() -> None:
    """Wraps methods of the front end and the scheduler. It runs in every process, any number of times."""
    configs = import_module("vllm.model_executor.models.config")
    checks = type("Checks", (configs.VerifyAndUpdateConfig,), {"verify_and_update_config": staticmethod(refuse_config)})
    configs.MODELS_CONFIG_MAP.update(dict.fromkeys(ARCHITECTURES.values(), checks))
    wrap("vllm.v1.engine.input_processor", "InputProcessor", "_validate_params", _check)
    wrap("vllm.v1.engine.output_processor", "OutputProcessor", "process_outputs", _receive)
    wrap("vllm.v1.engine.output_processor", "RequestState", "_new_completion_output", _complete)
    wrap("vllm.outputs", "RequestOutput", "add", _merge)
    wrap("vllm.v1.core.sched.scheduler", "Scheduler", "update_from_output", _update)
    wrap("vllm.v1.engine.async_llm", "AsyncLLM", "__init__", _serve)


def install_worker() -> None:
    """Wraps methods of the two model runners, for the worker of a widened model."""
    for path in ("vllm.v1.worker.gpu_model_runner", "vllm.v1.worker.gpu.model_runner"):
        wrap(path, "GPUModelRunner", "execute_model", _execute)
        wrap(path, "GPUModelRunner", "sample_tokens", _attach)
    wrap("vllm.v1.worker.gpu_model_runner", "GPUModelRunner", "_sample", _sample)
    wrap("vllm.v1.worker.gpu.model_runner", "GPUModelRunner", "sample", _sample_second)


def served(vllm_config: Any) -> Served:
    """Reads what an engine serves. A folder that another model class than Otter's has loaded counts as plain."""
    model = vllm_config.model_config
    widened = model.architecture in ARCHITECTURES.values()
    config = {"otter": model.hf_config.otter, "vocab_size": model.hf_config.vocab_size} if widened else {}
    return Served.from_config(config, speculates=vllm_config.speculative_config is not None)


# -- the front end -----------------------------------------------------------------------------------------------------


def _check(original: Any, processor: Any, params: Any, *rest: Any, **named: Any) -> Any:
    """Refuses a request whose settings are wrong, before it reaches the engine."""
    try:
        served(processor.vllm_config).settings(getattr(params, "extra_args", None))
    except OtterError as error:
        raise import_module("vllm.exceptions").VLLMValidationError(str(error)) from error
    return original(processor, params, *rest, **named)


def _receive(original: Any, processor: Any, outputs: Any, *rest: Any, **named: Any) -> Any:
    """Removes the numbers from the engine's outputs, and stores them with their requests."""
    for output in outputs:
        parameters = output.kv_transfer_params
        if parameters and FIELD in parameters:
            output.kv_transfer_params = {k: v for k, v in parameters.items() if k != FIELD} or None
            if state := processor.request_states.get(output.request_id):
                extend(vars(state).setdefault(FIELD, {}), parameters[FIELD])
    return original(processor, outputs, *rest, **named)


def _complete(original: Any, state: Any, *rest: Any, **named: Any) -> Any:
    """Puts the numbers beside the tokens of a completion; of a streamed one, the latest numbers."""
    completion = original(state, *rest, **named)
    if FIELD in vars(state):
        end = state.detokenizer.num_output_tokens()
        setattr(completion, FIELD, part(state.otter, end - len(completion.token_ids), end))
    return completion


def _merge(original: Any, output: Any, later: Any, aggregate: bool) -> None:
    """Joins streamed outputs that were not fetched in time."""
    earlier = {each.index: each for each in output.outputs}
    original(output, later, aggregate)
    for each in later.outputs if aggregate else ():
        if each.index in earlier and (numbers := getattr(each, FIELD, None)):
            extend(vars(earlier[each.index]).setdefault(FIELD, {}), numbers)


def _serve(original: Any, *args: Any, **named: Any) -> None:
    """Prepares a server's routes."""
    for (path, owner), methods in HANDLERS.items():
        if owner.startswith("Cohere") and not find_spec("cohere"):  # vLLM does without its route, too
            continue
        for method, around in methods.items():
            wrap(path, owner, method, functools.partial(around, served))
    original(*args, **named)


# -- the scheduler -----------------------------------------------------------------------------------------------------


def _update(original: Any, scheduler: Any, scheduled: Any, output: Any) -> Any:
    """Ends responses by their guards, and sends the numbers with the tokens."""
    numbers = getattr(output, FIELD, None)
    if not numbers:
        return original(scheduler, scheduled, output)
    requests = {name: scheduler.requests[name] for name in numbers if name in scheduler.requests}
    tracks = {name: _track(scheduler, request) for name, request in requests.items()}
    ended = [name for name, request in requests.items() if _cut(request, tracks[name], output, numbers[name])]
    updates = original(scheduler, scheduled, output)
    for each in (each for update in updates.values() for each in update.outputs):
        track = tracks.get(each.request_id)
        if track and (leaving := track.leaving(numbers[each.request_id], len(each.new_token_ids))):
            each.kv_transfer_params = {**(each.kv_transfer_params or {}), FIELD: leaving}
    for name in ended:
        _end(scheduler, requests[name], tracks[name], updates)
    return updates


def _track(scheduler: Any, request: Any) -> Track:
    tracks: WeakKeyDictionary[Any, Track] = vars(scheduler).setdefault(FIELD, WeakKeyDictionary())
    if request not in tracks:
        params = request.sampling_params
        tracks[request] = Track(served(scheduler.vllm_config), params.extra_args, params.min_tokens)
    return tracks[request]


def _cut(request: Any, track: Track, output: Any, numbers: Readings) -> bool:
    """Removes the tokens that come after a response's end. Returns whether its guard ended it."""
    if request.is_finished():
        return False
    if request.num_stale_output_tokens > 0 and request.drop_stale_output:  # of a preempted run: vLLM drops it, too
        return False
    tokens = output.sampled_token_ids[output.req_id_to_index[request.request_id]]
    length = track.judge(request.num_output_tokens, numbers, len(tokens))
    if length is not None:
        del tokens[length:]
    return length is not None


def _end(scheduler: Any, request: Any, track: Track, updates: Any) -> None:
    """Finishes a request that its guard ended, as vLLM finishes those whose grammar fails."""
    engine, status = import_module("vllm.v1.engine"), import_module("vllm.v1.request").RequestStatus
    if not scheduler.finish_requests(request.request_id, status.FINISHED_STOPPED):
        return  # one of the tokens before ended it already
    update = updates.setdefault(request.client_index, engine.EngineCoreOutputs())
    waiting = track.waiting()
    update.outputs.append(
        engine.EngineCoreOutput(
            request_id=request.request_id,
            new_token_ids=[],
            finish_reason=request.get_finished_reason(),
            stop_reason=track.reason,
            kv_transfer_params={FIELD: waiting} if waiting else None,
            events=request.take_events(),
            trace_headers=request.trace_headers,
        )
    )


# -- the worker --------------------------------------------------------------------------------------------------------


def _watcher(runner: Any) -> Watcher | None:
    return getattr(getattr(runner, "model", None), "watcher", None)


def _execute(original: Any, runner: Any, scheduled: Any, *rest: Any, **named: Any) -> Any:
    if watcher := _watcher(runner):
        entering = ((new.req_id, new.sampling_params) for new in scheduled.scheduled_new_reqs)
        watcher.schedule(((name, params.extra_args) for name, params in entering if params), scheduled.finished_req_ids)
    return original(runner, scheduled, *rest, **named)


def _sample(original: Any, runner: Any, logits: Any, drafts: Any) -> Any:
    """Wraps the first model runner, which has computed the logits."""
    if watcher := _watcher(runner):
        requests = runner.input_batch.req_ids
        watcher.sample(requests, [0] * len(requests) if drafts is None else drafts.num_draft_tokens)
    return original(runner, logits, drafts)


def _sample_second(original: Any, runner: Any, hidden: Any, batch: Any, grammar: Any) -> Any:
    """Wraps the second model runner, which computes the logits here."""
    output = original(runner, hidden, batch, grammar)
    if watcher := _watcher(runner):
        rows = np.diff(batch.cu_num_logits_np[: len(batch.req_ids) + 1])
        watcher.sample(batch.req_ids, (rows - 1).tolist())
    return output


def _attach(original: Any, runner: Any, grammar: Any) -> Any:
    output, watcher = original(runner, grammar), _watcher(runner)
    if output is None or watcher is None or not (copies := watcher.take()):
        return output
    pending = import_module("vllm.v1.outputs").AsyncModelRunnerOutput
    if not isinstance(output, pending):
        setattr(output, FIELD, copies.by_request())
        return output

    class Attaching(pending):  # type: ignore[misc, valid-type]
        """The output is pending. When it arrives it has waited for the step's stream, and so for the copies."""

        def get_output(self) -> Any:
            ready = output.get_output()
            setattr(ready, FIELD, copies.by_request())
            return ready

    return Attaching()

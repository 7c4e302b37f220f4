"""Wraps vLLM's scheduler: it ends responses by their guards, and sends the numbers with the tokens."""

from importlib import import_module
from typing import Any
from weakref import WeakKeyDictionary

from otterlm.engines.guard import Track
from otterlm.engines.readings import Readings
from otterlm.engines.rewards import Numbers
from otterlm.engines.vllm.upstream.wrapping import END, FIELD, PROMPTS, served


def update(original: Any, scheduler: Any, scheduled: Any, output: Any) -> Any:
    """Ends responses by their guards, and sends the numbers with the tokens."""
    numbers, prompts = getattr(output, FIELD, {}), getattr(output, PROMPTS, {})
    if not numbers and not prompts:
        return original(scheduler, scheduled, output)
    for name, (start, rows) in prompts.items():
        if name in scheduler.requests:
            track(scheduler, scheduler.requests[name]).read_prompt(start, rows)
    requests = {name: scheduler.requests[name] for name in numbers if name in scheduler.requests}
    tracks = {name: track(scheduler, request) for name, request in requests.items()}
    ended = [name for name, request in requests.items() if _cut(request, tracks[name], output, numbers[name])]
    updates = original(scheduler, scheduled, output)
    for each in (each for update in updates.values() for each in update.outputs):
        if followed := tracks.get(each.request_id):
            leaving = followed.leaving(numbers[each.request_id], len(each.new_token_ids))
            each.kv_transfer_params = _with(
                each.kv_transfer_params, leaving, followed.end() if each.finish_reason is not None else None
            )
    for name in ended:
        _end(scheduler, requests[name], tracks[name], updates)
    return updates


def _with(parameters: dict[str, Any] | None, numbers: Numbers, end: dict[str, Any] | None) -> dict[str, Any] | None:
    """Adds a response's numbers, and where it ends what is counted, to what vLLM sends."""
    more = {name: value for name, value in ((FIELD, numbers), (END, end)) if value}
    return {**(parameters or {}), **more} if more else parameters


def track(scheduler: Any, request: Any) -> Track:
    """Returns what follows a request. It is made when the request enters the engine."""
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
    update.outputs.append(
        engine.EngineCoreOutput(
            request_id=request.request_id,
            new_token_ids=[],
            finish_reason=request.get_finished_reason(),
            stop_reason=track.reason,
            kv_transfer_params=_with(None, track.waiting(), track.end(by_guard=True)),
            events=request.take_events(),
            trace_headers=request.trace_headers,
        )
    )

"""Loads and unloads adapters while an engine runs.

The engine decides, between two steps: it knows which requests are under way. Its workers take over the weights, and
every API server gets the new state as an output of the engine, before those of later steps.
"""

from importlib import import_module
from pathlib import Path
from typing import Any

from otterlm.engines.requests import ENTERED
from otterlm.engines.settings import Settings
from otterlm.engines.slots import Slots, read
from otterlm.engines.vllm.upstream.scheduler import track
from otterlm.engines.vllm.upstream.wrapping import served, set_slots, slots
from otterlm.errors import OtterError

STATE = "otter_slots"
"""The key of the new state in what API servers get; also the identity of the output, which is no request's."""
LOADS = "otter_loads"
"""The attribute of an engine that counts the loads of each name."""


class Busy(OtterError):
    """The slot that another adapter is to take is still in use by requests."""


def add(original: Any, core: Any, request: Any, *rest: Any) -> None:
    """Reads a request's settings as it enters the engine, and separates what it caches from what was cached before the
    adapters that it needs were loaded."""
    params = request.sampling_params
    if params is None or not params.extra_args or not served(core.vllm_config).signals:
        original(core, request, *rest)
        return
    try:
        params.extra_args = served(core.vllm_config).enter(params.extra_args)
    except OtterError:  # an adapter was unloaded and replaced since an API server has checked the request
        if not hasattr(core, "_send_error_outputs_to_client"):
            raise
        core._send_error_outputs_to_client([request.request_id], request.client_index)
        return
    used, loads = _adapters(request), vars(core).get(LOADS, {})
    if salt := [f"{name}:{loads[name]}" for name in sorted(used & loads.keys())]:
        request.cache_salt = " ".join(("otter", *salt, request.cache_salt or ""))
        request.block_hashes.clear()
        request.update_block_hashes()
    original(core, request, *rest)
    if used:
        track(core.scheduler, request)


def _adapters(request: Any) -> set[str]:
    """Returns the adapters that a request in the engine uses."""
    settings = ((request.sampling_params and request.sampling_params.extra_args) or {}).get(ENTERED)
    if not isinstance(settings, Settings):
        return set()
    return {*(settings.watched or ()), *((settings.steer,) if settings.steer else ())}


def change(core: Any, name: str, folder: str | None) -> dict[str, Any]:
    """Loads an adapter, or unloads it where no folder is given. The engine runs it between two steps.

    Returns:
        The new state, see `state_of`; or `error`, why nothing changed, and `busy`, whether that passes by itself.
    """
    try:
        config = core.vllm_config
        changed = slots(config).unload(name) if folder is None else _load(core, name, Path(folder))
    except OtterError as error:
        return {"error": str(error), "busy": isinstance(error, Busy)}
    set_slots(config, changed)
    state = state_of(changed)
    if hasattr(core, "output_queue"):  # else the front end is in this process, with the same configuration
        _announce(core, state)
    return state


def _announce(core: Any, state: dict[str, Any]) -> None:
    """Sends the state to every API server, with an output that is no request's."""
    engine = import_module("vllm.v1.engine")
    for index in range(core.vllm_config.parallel_config._api_process_count):
        output = engine.EngineCoreOutput(request_id=STATE, new_token_ids=[], kv_transfer_params={STATE: state})
        core.output_queue.put_nowait((index, engine.EngineCoreOutputs(outputs=[output])))


def _load(core: Any, name: str, folder: Path) -> Slots:
    current, config = slots(core.vllm_config), read(folder)
    slot = current.slot_for(name, config, core.vllm_config.model_config.hf_config.hidden_size)
    if users := sum(slot in _adapters(request) for request in core.scheduler.requests.values()):
        raise Busy(f"{users} requests still use {slot}, which was unloaded: try again when they have ended")
    call = core.model_executor.collective_rpc
    if problems := [problem for problem in call(_prepare, args=(slot, str(folder))) if problem]:
        raise OtterError(problems[0])
    changed = current.load(slot, name, config)
    call(_commit, args=(slot, name, state_of(changed)))
    loads: dict[str, int] = vars(core).setdefault(LOADS, {})
    loads[name] = max(loads.values(), default=0) + 1
    return changed


def _prepare(worker: Any, slot: str, folder: str) -> str | None:
    """Runs in each worker. Returns why the adapter cannot be loaded."""
    try:
        worker.get_model().replacement.prepare(slot, Path(folder))
    except OtterError as error:
        return str(error)
    return None


def _commit(worker: Any, slot: str, name: str, state: dict[str, Any]) -> None:
    """Runs in each worker, if all have prepared the adapter."""
    set_slots(worker.vllm_config, of_state(state))
    worker.get_model().replacement.commit(slot, name, served(worker.vllm_config))


def state_of(changed: Slots) -> dict[str, Any]:
    """Returns slots as other processes get them."""
    return {"adapters": dict(changed.adapters), "unloaded": list(changed.unloaded)}


def of_state(state: dict[str, Any]) -> Slots:
    """Returns the slots that another process has sent."""
    return Slots(state["adapters"], tuple(state["unloaded"]))

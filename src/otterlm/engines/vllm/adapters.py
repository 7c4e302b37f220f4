"""Adds routes to the server that load, unload and list adapters while it runs.

    GET    /v1/otter/adapters           the slots, with the adapters in them
    POST   /v1/otter/adapters           {"name": NAME, "path": FOLDER}, a folder or hub id, as the server sees it
    DELETE /v1/otter/adapters/NAME

Clients may change adapters only where the server was started so, as with vLLM's LoRA.
"""

import asyncio
import os
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any

from otterlm import adapter_files
from otterlm.engines.slots import Slots, read
from otterlm.engines.vllm.events import log_event
from otterlm.engines.vllm.upstream.adapters import Busy, of_state
from otterlm.engines.vllm.upstream.starting import LOADING
from otterlm.engines.vllm.upstream.wrapping import set_slots, slots
from otterlm.errors import OtterError

PATH = "/v1/otter/adapters"


class Forbidden(OtterError):
    """The server does not let clients change its adapters."""


def attach(app: Any) -> None:
    """Adds the routes."""
    app.add_route(PATH, _answer(listed), methods=["GET"])
    app.add_route(PATH, _answer(load), methods=["POST"])
    app.add_route(PATH + "/{name}", _answer(unload), methods=["DELETE"])


def _answer(make: Callable[..., Any]) -> Callable[..., Any]:
    async def answer(http: Any) -> Any:
        from starlette.responses import JSONResponse

        handler = http.app.state.openai_serving_completion
        try:
            return JSONResponse(await make(http, http.app.state.engine_client))
        except Forbidden as error:
            result = handler.create_error_response(str(error), "PermissionDeniedError", HTTPStatus.FORBIDDEN)
        except Busy as error:
            result = handler.create_error_response(str(error), "ConflictError", HTTPStatus.CONFLICT)
        except (OtterError, ValueError) as error:  # also of JSON
            result = handler.create_error_response(str(error))
        return JSONResponse(result.model_dump(), result.error.code)

    return answer


async def listed(_: Any, engine: Any) -> dict[str, Any]:
    """Answers with the slots."""
    return {"object": "list", "data": slots(engine.vllm_config).listing()}


async def load(http: Any, engine: Any) -> dict[str, Any]:
    """Loads the adapter that a request names. Answers with its line of the list.

    Raises:
        OtterError: it cannot be loaded.
    """
    body = await http.json()
    fields = ("name", "path")
    if not isinstance(body, Mapping) or set(body) != set(fields) or not all(isinstance(body[key], str) for key in body):
        raise OtterError("give the adapter's name and its path, both as text")
    _check_allowed(engine)
    folder = await asyncio.to_thread(adapter_files.locate, body["path"])  # a hub id is downloaded
    read(folder)
    changed = await _change(engine, body["name"], str(folder.resolve()))
    log_event("adapter_loaded", adapter=body["name"], path=body["path"])
    return next(line for line in changed.listing() if line["id"] == body["name"])


async def unload(http: Any, engine: Any) -> dict[str, Any]:
    """Removes an adapter from what new requests may ask for. Those that have begun use it to their end.

    Raises:
        OtterError: there is no such adapter.
    """
    _check_allowed(engine)
    name = http.path_params["name"]
    await _change(engine, name, None)
    log_event("adapter_unloaded", adapter=name)
    return {"id": name, "object": "adapter", "loaded": False}


def _check_allowed(engine: Any) -> None:
    if os.environ.get(LOADING, "0").lower() not in ("1", "true"):
        raise Forbidden(
            f"this server's adapters are fixed: start it with otter serve --load-adapters, or with {LOADING}=1"
        )
    if engine.vllm_config.parallel_config.data_parallel_size > 1:
        raise OtterError(
            "adapters cannot be changed with data_parallel_size above 1: every engine has its own requests"
        )


async def _change(engine: Any, name: str, folder: str | None) -> Slots:
    state = await engine.engine_core.call_utility_async("otter_change", name, folder)
    if "error" in state:
        raise (Busy if state["busy"] else OtterError)(state["error"])
    changed = of_state(state)
    set_slots(engine.vllm_config, changed)
    return changed

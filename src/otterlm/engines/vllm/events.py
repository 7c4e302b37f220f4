"""Writes what happens to Otter's requests into vLLM's log, a line each: `otter` and a JSON object."""

import json
import logging
from collections.abc import Mapping
from typing import Any

logger = logging.getLogger("vllm").getChild("otter")
"""It is below vLLM's logger, and has its level, its form and its settings (`VLLM_LOGGING_CONFIG_PATH`)."""


def log_event(event: str, **fields: Any) -> None:
    """Writes a line.

    Args:
        event: what happened.
        fields: which request, adapter or label; None is left out.
    """
    present = {name: value for name, value in fields.items() if value is not None}
    logger.info("otter %s", json.dumps({"event": event, **present}, ensure_ascii=False))


ENDS = {"stops": "response_stopped", "refused_prompts": "prompt_refused"}
"""The events of a response that a guard ended, by what is counted."""


def log_end(end: Mapping[str, Any], request: str | None) -> None:
    """Writes a line where a guard ended a response.

    Args:
        end: what is counted of the response, see `otterlm.engines.guard.Track.end`.
        request: the request's identity, as the client has it.
    """
    for name in ENDS.keys() & end.keys():
        adapter, label = end[name]
        numbers = {"reward": end["rewards"].get(adapter), "probability": end["guards"].get(adapter, {}).get(label)}
        log_event(ENDS[name], request=request, adapter=adapter, label=label or None, **numbers)

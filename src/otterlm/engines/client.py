"""Makes requests to an engine and reads its responses, offline and over HTTP.

Nothing here needs torch or Transformers: a client makes requests and loads no model.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from otterlm.engines.requests import PREFIX, Served
from otterlm.engines.rewards import Numbers
from otterlm.errors import OtterError, reason


def request(folder: str | Path, **settings: Any) -> dict[str, Any]:
    """Makes arguments for `vllm.SamplingParams`.

    Args:
        folder: an exported folder.
        settings: as in `otterlm.engines.requests`, without `otter_` before them: `weight=2.0, rewards=1`.

    Raises:
        OtterError: one is unknown or out of range, no adapter fits, or the folder has no readable `config.json`.
    """
    path = Path(folder) / "config.json"
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise OtterError(f"cannot read {path}: {reason(error)}") from error
    arguments = {PREFIX + name: value for name, value in settings.items()}
    Served.from_config(config).settings(arguments)
    return {"extra_args": arguments}


def rewards(output: Any) -> Numbers:
    """Returns the rewards beside the tokens of an offline `CompletionOutput` whose request had `rewards=1`.

    They are by adapter. The reward of a token is that of the text the token was chosen after.
    """
    numbers: Numbers | None = getattr(output, "otter", None)
    return numbers or {}


class Piece(NamedTuple):
    """A piece is a part of a streamed choice."""

    choice: int
    text: str
    rewards: Numbers
    stop_reason: str | int | None


def read(stream: Iterable[Any]) -> Iterator[Piece]:
    """Yields the pieces of a stream of the `openai` package, whose request had `otter_rewards`.

    Args:
        stream: what `client.chat.completions.create(..., stream=True, extra_body={"vllm_xargs": {"otter_rewards": 1}})`
            returns, or `client.completions.create`.
    """
    for chunk in stream:
        for choice in chunk.choices:
            text = choice.delta.content if hasattr(choice, "delta") else choice.text
            extra = choice.model_extra or {}
            numbers = (extra.get("otter") or {}).get("rewards", {})
            stop_reason = extra.get("stop_reason")
            if text or numbers or stop_reason is not None:
                yield Piece(choice.index, text or "", numbers, stop_reason)

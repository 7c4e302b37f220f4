"""Makes requests to an engine and reads its responses, offline and over HTTP.

Nothing here needs torch or Transformers: a client makes requests and loads no model.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from otterlm.engines.requests import Served
from otterlm.engines.rewards import PROMPT, Numbers
from otterlm.engines.settings import PREFIX
from otterlm.errors import OtterError, reason


def request(folder: str | Path, **settings: Any) -> dict[str, Any]:
    """Makes arguments for `vllm.SamplingParams`.

    Args:
        folder: an exported folder.
        settings: as in `otterlm.engines.settings`, without `otter_` before them: `weight=2.0, rewards=1`.

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


def rewards(output: Any) -> dict[str, list[float]]:
    """Returns the rewards beside the tokens of an offline `CompletionOutput` whose request had `rewards=1`.

    They are by adapter. The reward of a token is that of the text the token was chosen after.
    """
    return _numbers(output).get("rewards", {})


def guards(output: Any) -> dict[str, dict[str, list[float]]]:
    """Returns the probabilities beside the tokens of a `CompletionOutput` whose request had `guards=1`.

    They are by adapter and label, of the text that each token was chosen after.
    """
    return _numbers(output).get("guards", {})


def spans(output: Any) -> dict[str, dict[str, list[float]]]:
    """Returns the same of the last token of that text being inside a passage, by adapter and label."""
    return _numbers(output).get("spans", {})


def prompt(output: Any) -> dict[str, Any]:
    """Returns what the signals say of the prompt, of a `CompletionOutput` whose request had `prompt=1`.

    `rewards` has a number for each adapter. `guards` has a verdict for each: `label`, the likeliest that raises an
    alarm, its `probability`, whether the prompt is `flagged`, and the `probabilities` of all labels.
    """
    return _numbers(output).get(PROMPT, {})


def _numbers(output: Any) -> Numbers:
    return getattr(output, "otter", None) or {}


class Piece(NamedTuple):
    """A piece is a part of a streamed choice.

    Attributes:
        choice: its index.
        text: of this part.
        rewards, guards, spans: beside its tokens, as in the functions of these names.
        stop_reason: why the choice ends here, if it does.
        prompt: what the signals say of the prompt, with the first piece.
    """

    choice: int
    text: str
    rewards: dict[str, list[float]]
    stop_reason: str | int | None
    guards: dict[str, dict[str, list[float]]]
    spans: dict[str, dict[str, list[float]]]
    prompt: dict[str, Any]


def read(stream: Iterable[Any]) -> Iterator[Piece]:
    """Yields the pieces of a stream of the `openai` package, whose request had `otter_rewards`, for example.

    Args:
        stream: what `client.chat.completions.create(..., stream=True, extra_body={"vllm_xargs": {"otter_rewards": 1}})`
            returns, or `client.completions.create`.
    """
    for chunk in stream:
        for choice in chunk.choices:
            text = choice.delta.content if hasattr(choice, "delta") else choice.text
            extra = choice.model_extra or {}
            numbers = extra.get("otter") or {}
            stop_reason = extra.get("stop_reason")
            if text or numbers or stop_reason is not None:
                beside = (numbers.get(name, {}) for name in ("guards", "spans", PROMPT))
                yield Piece(choice.index, text or "", numbers.get("rewards", {}), stop_reason, *beside)


def score(server: Any, model: str, **texts: Any) -> list[dict[str, Any]]:
    """Scores texts on a running server, by its route `/v1/otter/score`.

    Args:
        server: a client of the `openai` package.
        model: the name of what it serves.
        texts: `input`, a text or a list of texts; or `messages`, a dialogue or a list of dialogues; and `tokens=True`
            for the numbers beside every token.

    Returns:
        For each text its `rewards` and the verdicts of `guards`, as `prompt` has them. With `tokens` also `tokens`, the
        numbers of the texts that end with each token, and `token_ids`.
    """
    response: dict[str, Any] = server.post("/otter/score", cast_to=object, body={"model": model, **texts})
    data: list[dict[str, Any]] = response["data"]
    return data

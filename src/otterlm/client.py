"""Makes requests to an engine and reads its responses, offline and over HTTP.

Nothing here needs torch or Transformers: a client makes requests and loads no model. Over HTTP nothing but the standard
library is needed either: a response may be an object of the `openai` or `litellm` package, or what `json.loads` gives.
"""

import json
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from otterlm.engines.requests import Served
from otterlm.engines.rewards import PROMPT, Numbers, extend, filled, part
from otterlm.engines.settings import PREFIX
from otterlm.errors import OtterError, reason

__all__ = [
    "Piece",
    "choices",
    "guards",
    "join",
    "prompt",
    "read",
    "read_async",
    "request",
    "rewards",
    "score",
    "score_async",
    "spans",
]


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
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OtterError(f"cannot read {path}: {reason(error)}") from error
    arguments = {PREFIX + name: value for name, value in settings.items()}
    Served.from_config(config).settings(arguments)
    return {"extra_args": arguments}


# -- what an engine in this process returns ----------------------------------------------------------------------------


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


# -- responses over HTTP -----------------------------------------------------------------------------------------------


class Piece(NamedTuple):
    """A piece is a choice, or a part of one that is streamed.

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

    @property
    def empty(self) -> bool:
        """Says whether there is nothing in it."""
        numbers = self.rewards or self.guards or self.spans or self.prompt
        return not self.text and not numbers and self.stop_reason is None


def choices(response: Any) -> list[Piece]:
    """Returns the choices of a response that is not streamed, each as one piece.

    Args:
        response: of `/v1/completions`, `/v1/chat/completions` or `/v1/responses`, which has one choice.

    Raises:
        OtterError: it is no such response, or an error of the server.
    """
    _refuse_error(response)
    if (listed := _get(response, "choices")) is not None:
        return [_piece(choice, _get(choice, "message")) for choice in listed]
    if (output := _get(response, "output")) is not None:
        parts = (part for item in output for part in _get(item, "content") or () if _get(item, "type") == "message")
        numbers = _get(response, "otter") or {}
        return [_made(0, "".join(_get(part, "text") or "" for part in parts), numbers, numbers.get("stop_reason"))]
    raise OtterError(f"a {type(response).__name__} is no response with choices; a stream is read with client.read")


def read(stream: Iterable[Any]) -> Iterator[Piece]:
    """Yields the pieces of a streamed response, as they come. Those of several choices come in any order.

    Args:
        stream: what `create(..., stream=True)` of the `openai` package returns, for completions, chats or responses;
            the stream of another package with the same fields; or lines of the HTTP response (`iter_lines()`).

    Raises:
        OtterError: it is no stream of these, or the server reports an error in it.
    """
    if isinstance(stream, Mapping | str | bytes):
        raise OtterError(f"a {type(stream).__name__} is no stream; a whole response is read with client.choices")
    reader = _Reader()
    for event in stream:
        yield from reader.pieces(event)


async def read_async(stream: AsyncIterable[Any]) -> AsyncIterator[Piece]:
    """Yields the same of a stream of `AsyncOpenAI`, for example. See `read`."""
    reader = _Reader()
    async for event in stream:
        for piece in reader.pieces(event):
            yield piece


def join(pieces: Iterable[Piece]) -> list[Piece]:
    """Joins the pieces of a stream to its choices, in the order of their indices."""
    joined: dict[int, Piece] = {}
    for piece in pieces:
        before = joined.setdefault(piece.choice, _made(piece.choice, "", {}, None))
        for name in ("rewards", "guards", "spans"):
            extend(getattr(before, name), getattr(piece, name))
        stop_reason = before.stop_reason if piece.stop_reason is None else piece.stop_reason
        joined[piece.choice] = before._replace(
            text=before.text + piece.text, stop_reason=stop_reason, prompt=before.prompt or piece.prompt
        )
    return [joined[index] for index in sorted(joined)]


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
    response: dict[str, list[Any]] = server.post("/otter/score", cast_to=object, body={"model": model, **texts})
    return response["data"]


async def score_async(server: Any, model: str, **texts: Any) -> list[dict[str, Any]]:
    """Scores texts with an `AsyncOpenAI`. See `score`."""
    response: dict[str, list[Any]] = await server.post("/otter/score", cast_to=object, body={"model": model, **texts})
    return response["data"]


class _Reader:
    """Reads the events of one stream."""

    def __init__(self) -> None:
        self._read: Numbers = {}  # what the deltas of a stream of `/v1/responses` had

    def pieces(self, event: Any) -> Iterator[Piece]:
        """Yields the pieces of an event: an object, a dictionary or a line."""
        if isinstance(event, str | bytes):
            data = _data(event)
            if data is None:
                return
            event = data
        _refuse_error(event)
        kind = _get(event, "type")
        if (listed := _get(event, "choices")) is not None:
            yield from (piece for choice in listed if not (piece := _piece(choice, _get(choice, "delta"))).empty)
        elif isinstance(kind, str):
            yield from self._of_responses(event, kind)
        else:
            raise OtterError(f"a {type(event).__name__} is no part of a stream; a whole response: client.choices")

    def _of_responses(self, event: Any, kind: str) -> Iterator[Piece]:
        """Yields the piece of an event of `/v1/responses`. The last one has what the deltas before it left out."""
        piece = _made(0, "", {}, None)
        if (whole := _get(event, "response")) is not None:
            _refuse_error(whole)
            numbers = _get(whole, "otter") or {}
            piece = _made(0, "", _rest(numbers, self._read), numbers.get("stop_reason"))
        elif kind.endswith(".delta"):
            numbers = _get(event, "otter") or {}
            extend(self._read, numbers)
            piece = _made(0, _get(event, "delta") if kind == "response.output_text.delta" else "", numbers, None)
        elif kind == "error":
            raise OtterError(f"the server reports: {_get(event, 'message')}")
        if not piece.empty:
            yield piece


def _data(line: str | bytes) -> Any:
    """Returns what a line of server-sent events holds; None for lines without data, and for the end."""
    text = line.decode() if isinstance(line, bytes) else line
    name, _, data = text.strip().partition(":")
    if name not in EVENT_FIELDS:
        raise OtterError(f"{text[:60]!r} is no line of a stream: was it requested with stream=True?")
    return json.loads(data) if name == "data" and data.strip() != "[DONE]" else None


EVENT_FIELDS = ("data", "event", "id", "retry", "")
"""What lines of server-sent events begin with, before a colon. The last is of empty lines and comments."""


def _get(thing: Any, name: str) -> Any:
    """Returns a field of an object or a dictionary; None where there is none."""
    return thing.get(name) if isinstance(thing, Mapping) else getattr(thing, name, None)


def _refuse_error(answer: Any) -> None:
    """Checks that an answer is no error of the server, in a stream or instead of a response."""
    if error := _get(answer, "error"):
        raise OtterError(f"the server reports: {_get(error, 'message') or error}")


def _piece(choice: Any, message: Any) -> Piece:
    """Makes the piece of a choice.

    Args:
        choice: of a response or of an event.
        message: the message or delta of a chat; None: of a completion.
    """
    others = _get(choice, "provider_specific_fields") or {}  # where litellm puts fields that it does not know
    stop_reason = _get(choice, "stop_reason")
    text = _get(choice, "text") if message is None else _get(message, "content")
    return _made(
        _get(choice, "index") or 0,
        text,
        _get(choice, "otter") or others.get("otter") or {},
        others.get("stop_reason") if stop_reason is None else stop_reason,
    )


def _made(choice: int, text: str | None, numbers: Mapping[str, Any], stop_reason: Any) -> Piece:
    beside = (numbers.get(name, {}) for name in ("guards", "spans", PROMPT))
    return Piece(choice, text or "", numbers.get("rewards", {}), stop_reason, *beside)


def _rest(numbers: Numbers, before: Mapping[str, Any]) -> Numbers:
    """Returns the numbers of the tokens that the deltas left out."""
    lists = {name: value for name, value in numbers.items() if name in ("rewards", "guards", "spans")}
    rest = part(lists, _length(before), _length(lists))
    if PROMPT not in before and PROMPT in numbers:
        rest[PROMPT] = numbers[PROMPT]
    return rest if filled(rest) else {}


def _length(numbers: Any) -> int:
    """Returns of how many tokens there are numbers."""
    if isinstance(numbers, Mapping):
        return max((_length(value) for name, value in numbers.items() if name != PROMPT), default=0)
    return len(numbers)

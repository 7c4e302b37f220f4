"""Preference pairs and scored texts out of records, checked row by row."""

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from otterlm.errors import OtterError
from otterlm.training.records import read_records

Message = dict[str, str]
"""A chat message, `{"role": "user" | "assistant" | "system", "content": ...}`."""

Prompt = tuple[tuple[str, str], ...]
"""The (role, content) turns before a response."""


@dataclass(frozen=True, slots=True)
class Dialogue:
    """A prompt and the response that is judged.

    `prompt` holds the chat messages before the response; None means a raw text with no dialogue in it.
    """

    prompt: Prompt | None
    response: str


@dataclass(frozen=True, slots=True)
class PairRow:
    """Of two responses, `chosen` is the better one."""

    chosen: Dialogue
    rejected: Dialogue


@dataclass(frozen=True, slots=True)
class ScoredRow:
    """A response with a score given to it (any real number)."""

    text: Dialogue
    score: float


Row = PairRow | ScoredRow


def read_rows(source: str | Path, split: str = "train") -> list[Row]:
    """Reads preference pairs or scored texts.

    Args:
        source: a local `.json`, `.jsonl` or `.csv` file (also with `.gz`), or the name of a dataset on the hub.
        split: which split of a hub dataset.

    Returns:
        One row per record: `PairRow` where it has `chosen` and `rejected` (and perhaps `prompt`), `ScoredRow` where it
            has
        `text` and `score`. Texts are dialogues in the HH format ("\\n\\nHuman: ...\\n\\nAssistant: ..."), lists of
        chat messages, or plain strings.

    Raises:
        OtterError: the file is missing, empty, not what its name says, or a row lacks a column; the row is named.
    """
    records = enumerate(read_records(source, split), start=1)
    rows = [_parse_row(record, f"{source}, row {number}") for number, record in records]
    if not rows:
        raise OtterError(f"{source} holds no rows; expected columns chosen and rejected, or text and score")
    return rows


def _parse_row(record: Any, where: str) -> Row:
    if not isinstance(record, Mapping):
        raise OtterError(f"{where}: expected an object with named columns, found {type(record).__name__}")
    if "chosen" in record or "rejected" in record:
        chosen, rejected = (_parse_text(record, column, where) for column in ("chosen", "rejected"))
        return PairRow(chosen, rejected)
    text = _parse_text(record, "text", where)
    try:
        score = float(record["score"])
    except (KeyError, TypeError, ValueError, OverflowError):
        raise OtterError(f"{where}: column score is missing or not a number") from None
    if score != score or score in (float("inf"), float("-inf")):
        raise OtterError(f"{where}: score is {score}; it must be finite")
    return ScoredRow(text, score)


def _parse_text(record: Mapping[str, Any], column: str, where: str) -> Dialogue:
    value = record.get(column)
    if not value:
        present = ", ".join(sorted(str(name) for name in record)) or "none"
        raise OtterError(f"{where}: column {column} is missing or empty (columns there: {present})")
    if not isinstance(value, str | list):
        raise OtterError(f"{where}: column {column} must be a text or a list of messages, not {type(value).__name__}")
    prompt = record.get("prompt")
    if isinstance(value, str) and prompt and not (isinstance(prompt, str) and value.startswith(prompt)):
        return Dialogue(tuple(_prompt_turns(prompt, where)), value)
    if isinstance(value, list) and isinstance(prompt, list):
        value = prompt + value
    return parse_dialogue(value, where)


def _prompt_turns(prompt: Any, where: str) -> list[tuple[str, str]]:
    """A prompt given apart from its response: chat messages, the HH format, or what the user says."""
    turns = _turns(prompt, where)
    while turns and turns[-1] == ("assistant", ""):  # the HH format's "Assistant:" that the response follows
        turns.pop()
    return turns or [("user", str(prompt))]


def _turns(value: Any, where: str) -> list[tuple[str, str]]:
    """Chat messages or the HH format as (role, content); a text without turns gives none."""
    if isinstance(value, list):
        try:
            return [(str(message["role"]), str(message["content"])) for message in value]
        except (TypeError, KeyError):
            raise OtterError(f"{where}: a chat message needs role and content") from None
    before, *pieces = _TURN.split(str(value))
    roles = {"Human": "user", "Assistant": "assistant"}
    turns = [(roles[name], text.strip()) for name, text in zip(pieces[::2], pieces[1::2], strict=True)]
    return [("system", before.strip()), *turns] if turns and before.strip() else turns


_TURN = re.compile(r"\n\n(Human|Assistant):")


def parse_dialogue(value: str | list[Message], where: str = "text") -> Dialogue:
    """Splits a dialogue into what came before its last assistant turn and that turn.

    Args:
        value: the HH format ("\\n\\nHuman: ...\\n\\nAssistant: ..."), a list of chat messages, or a raw text.
        where: what to name in an error.

    Raises:
        OtterError: the dialogue does not end with an assistant turn.
    """
    turns = _turns(value, where)
    if not turns and isinstance(value, str):
        return Dialogue(None, value)
    if not turns or turns[-1][0] != "assistant":
        raise OtterError(f"{where}: the dialogue must end with an assistant turn")
    return Dialogue(tuple(turns[:-1]), turns[-1][1])


def check_fraction(fraction: float) -> None:
    """That a part of the data to hold out is from 0 to below 1.

    Raises:
        OtterError: it is not.
    """
    if not 0 <= fraction < 1:
        raise OtterError(f"the part held out must be from 0 to below 1, got {fraction}")


def hold_out(rows: Sequence[Row], fraction: float, seed: int) -> set[int]:
    """Holds out a part of the rows. Rows with one prompt stay on one side, so nothing leaks through it.

    Args:
        rows: what to split.
        fraction: about how much to hold out, from 0 to below 1.
        seed: which part.

    Returns:
        The indices of the held-out rows.

    Raises:
        OtterError: the fraction is out of range.
    """
    check_fraction(fraction)
    groups: dict[object, list[int]] = {}
    for index, row in enumerate(rows):
        text = row.chosen if isinstance(row, PairRow) else row.text
        groups.setdefault(text.prompt if text.prompt else index, []).append(index)
    order = list(groups.values())
    random.Random(seed).shuffle(order)
    held: set[int] = set()
    for group in order:
        if len(held) >= round(fraction * len(rows)):
            break
        held.update(group)
    return held

"""Reads preference pairs and scored texts from records, and checks them row by row."""

import array
import hashlib
import math
import random
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from otterlm.errors import OtterError
from otterlm.training.data.context import check_no_prompt, join, read_context, repeats
from otterlm.training.data.conversations import (
    CONVERSATIONS,
    Dialogue,  # these three are part of this module's face
    Turn,
    clean,
    is_present,
    parse_dialogue,
    read_turns,
    starts_with_turn,
)
from otterlm.training.data.records import (
    Records,
    at_least_one,
    check_names,
    column_names,
    numbered_records,
    source_name,
)

SIDES = ["chosen", "rejected"]
TEXTS = ("text", "response", "completion")
"""These columns can hold a scored text; else one of `CONVERSATIONS`."""


@dataclass(frozen=True, slots=True)
class PairRow:
    """A pair has two responses, of which `chosen` is the better one. `where` names the row in errors."""

    chosen: Dialogue
    rejected: Dialogue
    where: str = field(default="a pair", compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class ScoredRow:
    """A scored row has a response and its score (any real number). `where` names the row in errors."""

    text: Dialogue
    score: float
    where: str = field(default="a scored text", compare=False, repr=False)


Row = PairRow | ScoredRow


def read_rows(source: Records, split: str = "train") -> list[Row]:
    """Reads preference pairs or scored texts.

    Args:
        source: see `otterlm.training.data.records.read_records`.
        split: which split, where there are several.

    Returns:
        One row a record: `PairRow` where it has `chosen` and `rejected`, `ScoredRow` where it has one of `TEXTS` (or of
        `CONVERSATIONS`) and `score`. They hold conversations (see `otterlm.training.data.conversations.read_turns`),
        responses to the prompts of other columns (see `otterlm.training.data.context.read_context`), or raw texts.

    Raises:
        OtterError: the source cannot be read or is empty, or a row cannot be read; the row is named.
    """
    return list(iterate_rows(source, split))


def iterate_rows(source: Records, split: str = "train") -> Iterator[Row]:
    """Reads rows one by one, see `read_rows`."""
    rows = (parse_row(record, where) for where, record in numbered_records(source, split))
    refusal = f"{source_name(source)} holds no rows; expected columns chosen and rejected, or text and score"
    yield from at_least_one(rows, refusal)


def parse_row(record: Mapping[str, Any], where: str) -> Row:
    """Reads one record as a row. Errors are those of `read_rows`."""
    columns = response_columns(record, where)
    columns = columns or [column for column in CONVERSATIONS if is_present(record.get(column))][:1]
    columns = columns or (SIDES if any(column in record for column in SIDES) else [])
    columns = columns or [column for column in TEXTS if column in record][:1]
    if not columns:
        check_names(record, (*SIDES, *TEXTS), where)
        raise OtterError(
            f"{where}: no columns chosen and rejected, or text and score (columns there: {column_names(record)})"
        )
    dialogues = read_dialogues(record, columns, where)
    if columns == SIDES:
        if is_present(record.get("margin")):
            raise OtterError(f"{where}: column margin cannot be used: a pair says only which is better; leave it out")
        return PairRow(dialogues[0], dialogues[1], where)
    return ScoredRow(dialogues[0], _read_score(record, where), where)


def response_columns(record: Mapping[str, Any], where: str) -> list[str]:
    """Returns the columns of a record that hold its responses: `SIDES`, or one of `TEXTS`, or none.

    Raises:
        OtterError: two hold a text.
    """
    if any(is_present(record.get(column)) for column in SIDES):
        return SIDES
    texts = [column for column in TEXTS if is_present(record.get(column))]
    if len(texts) > 1:
        raise OtterError(f"{where}: columns {' and '.join(texts)} both hold a text: keep one")
    texts += [column for column in TEXTS if isinstance(record.get(column), str)]
    return texts[:1] or (SIDES if any(isinstance(record.get(column), str) for column in SIDES) else [])


def _read_score(record: Mapping[str, Any], where: str) -> float:
    value: Any = record.get("score")
    try:
        score = float({"true": 1.0, "false": 0.0}.get(str(value).strip().lower(), value))
    except (TypeError, ValueError, OverflowError):
        check_names(record, ("score",), where)
        there = column_names(record)
        raise OtterError(f"{where}: column score is missing or not a number (columns there: {there})") from None
    if not math.isfinite(score):
        raise OtterError(f"{where}: score is {score}; it must be finite")
    return score


def read_dialogues(record: Mapping[str, Any], columns: Sequence[str], where: str) -> list[Dialogue]:
    """Reads the dialogues that columns of one record hold, all of them in one way.

    Raises:
        OtterError: a column is missing or cannot be read, or one holds a dialogue and another a raw text.
    """
    context = read_context(record, where, columns)
    values = {column: record.get(column) for column in columns}
    for column, value in values.items():
        empty = isinstance(value, str) and not value.strip()
        if not (context if empty else is_present(value)):
            there = column_names(record)
            raise OtterError(f"{where}: column {column} is missing or empty (columns there: {there})")
    if context:
        joined = [join(context, response, where) for response in _read_responses(values, context, where)]
        return _alike(joined, columns, where)
    dialogues = [parse_dialogue(value, f"{where}, column {column}") for column, value in values.items()]
    if len({dialogue.prompt is None for dialogue in dialogues}) > 1:
        raise OtterError(f"{where}: of {' and '.join(columns)} one is a dialogue and the other a text without a prompt")
    if len({dialogue.prompt == () for dialogue in dialogues}) > 1:
        raise OtterError(f"{where}: of {' and '.join(columns)} one is a dialogue and the other a response alone")
    if dialogues[0].prompt is None and columns != ["text"]:
        check_no_prompt(record, columns, where)
    return _alike(dialogues, columns, where)


def _alike(dialogues: list[Dialogue], columns: Sequence[str], where: str) -> list[Dialogue]:
    """Returns dialogues, of which all or none begin with the system's turn."""
    if len({(dialogue.prompt or ((),))[0][:1] == ("system",) for dialogue in dialogues}) > 1:
        raise OtterError(f"{where}: of {' and '.join(columns)} one has a system turn and the other has none")
    return dialogues


def _read_responses(values: Mapping[str, Any], context: Sequence[Turn], where: str) -> list[str | list[Turn]]:
    """Reads the responses beside a prompt, as texts or turns.

    A text may hold the words that a dialogue begins with. So texts are dialogues only where all of them begin and end
    as one.
    """
    columns = [(f"{where}, column {column}", value) for column, value in values.items()]
    whole = all(_is_whole(value, context, name) for name, value in columns if isinstance(value, str))
    for name, value in columns:
        if not whole and isinstance(value, str) and _is_dialogue(value, context, name):
            others = "it does not end with the assistant's" if len(columns) == 1 else "one of the texts is no dialogue"
            raise OtterError(f"{name} repeats the prompt as a dialogue, and {others}: give the responses alone")
    responses: list[str | list[Turn]] = []
    for name, value in columns:
        turns = None if isinstance(value, str) and not whole else read_turns(value, name)
        responses.append(clean(value, name) if turns is None else turns)
    return responses


def _is_dialogue(text: str, context: Sequence[Turn], where: str) -> bool:
    """Returns whether a text begins as a dialogue that repeats its prompt."""
    return starts_with_turn(text, where) and repeats(context, read_turns(text, where) or [])


def _is_whole(text: str, context: Sequence[Turn], where: str) -> bool:
    turns = read_turns(text, where)
    if not turns or turns[-1][0] != "assistant":
        return False
    return starts_with_turn(text, where) or repeats(context, turns)


def check_fraction(fraction: float) -> None:
    """Checks that a part of the data to hold out is from 0 to below 1.

    Raises:
        OtterError: it is not.
    """
    if not 0 <= fraction < 1:
        raise OtterError(f"the part held out must be from 0 to below 1, got {fraction}")


class TextRow(Protocol):
    """The row is of one dialogue."""

    @property
    def text(self) -> Dialogue: ...


def hold_out(rows: Collection[PairRow | TextRow], fraction: float, seed: int) -> set[int]:
    """Holds out a part of the rows. Rows with one prompt stay on one side, so nothing leaks through it.

    Args:
        rows: the rows to split.
        fraction: about how much to hold out, from 0 to below 1.
        seed: chooses the part.

    Returns:
        The indices of the held-out rows.

    Raises:
        OtterError: the fraction is out of range, or all rows have one prompt.
    """
    check_fraction(fraction)
    numbers, sizes = _groups(rows)
    wanted = round(fraction * len(rows))
    if wanted and len(sizes) == 1 and len(rows) > 1:
        raise OtterError(
            f"all {len(rows)} rows have one prompt, and rows of one prompt stay on one side, so no part can be held "
            "out: give rows of other prompts to evaluate on (--eval-data)"
        )
    order = list(range(len(sizes)))
    random.Random(seed).shuffle(order)
    order.sort(key=lambda group: sizes[group] > wanted)  # a prompt with more rows than that only where no other is left
    chosen, count = bytearray(len(sizes)), 0
    for group in order:
        if count >= wanted:
            break
        if count + sizes[group] < len(rows):
            chosen[group] = 1
            count += sizes[group]
    return {index for index, group in enumerate(numbers) if chosen[group]}


def _groups(rows: Iterable[PairRow | TextRow]) -> tuple[Sequence[int], Sequence[int]]:
    """Returns the number of each row's prompt, in the order of their first rows, and how many rows each has.

    It holds a digest of each prompt, not the prompt: data may be larger than memory.
    """
    digests = array.array("q")
    for index, row in enumerate(rows):
        text = row.chosen if isinstance(row, PairRow) else row.text
        alone = repr(tuple(text.prompt) if text.prompt else index)
        digests.frombytes(hashlib.blake2b(alone.encode("utf-8", "surrogatepass"), digest_size=8).digest())
    if not digests:
        return [], []
    _, groups, sizes = torch.frombuffer(digests, dtype=torch.int64).unique(return_inverse=True, return_counts=True)
    first = torch.full_like(sizes, len(groups)).scatter_reduce(0, groups, torch.arange(len(groups)), "amin")
    order = first.argsort()
    number = torch.empty_like(order)
    number[order] = torch.arange(len(order))
    return array.array("q", number[groups].tolist()), sizes[order].tolist()

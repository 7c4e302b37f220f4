"""Reads continuations of prompts that were generated elsewhere, such as by an engine, as text or as tokens."""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from otterlm.errors import OtterError
from otterlm.training.data.conversations import Dialogue, is_present, of_python
from otterlm.training.data.packing import Example
from otterlm.training.data.records import Records, column_names, numbered_records, source_name
from otterlm.training.data.rows import SIDES, read_dialogues, response_columns
from otterlm.training.data.stored_examples import StoredExamples, on_disk
from otterlm.training.data.stored_items import StoredItems
from otterlm.training.data.tokens import Limits, dialogue_tokens

HELP = "The base's ready continuations (prompt and response, or prompt_tokens and response_tokens): file or folder."
"""The help of options that `read_continuations` reads."""
TOKENS = ("prompt_tokens", "response_tokens")


@dataclass(frozen=True, slots=True)
class Continuation:
    """A continuation has a prompt and a response.

    Attributes:
        dialogue: both as text; None where there is only the tokens.
        tokens: the ids of both, as the base read and chose them; None where there is only the text.
        where: the row, for errors.
    """

    dialogue: Dialogue | None
    tokens: tuple[tuple[int, ...], tuple[int, ...]] | None
    where: str


def read_continuations(source: Records, limit: int | None = None, split: str = "train") -> StoredItems[Continuation]:
    """Reads continuations, one of each record, onto the disk.

    Args:
        source: see `otterlm.training.data.records.read_records`. A record has the columns `TOKENS`, or a prompt and a
            response as `otterlm.training.data.rows.read_rows` reads them.
        limit: only the first so many; None: all.
        split: which split, where there are several.

    Raises:
        OtterError: the source cannot be read or is empty, or a row has neither or holds a pair.
    """
    records = itertools.islice(numbered_records(source, split), limit)
    rows = StoredItems(_read(record, where) for where, record in records)
    if not rows:
        raise OtterError(f"{source_name(source)} holds no continuations")
    return rows


def _read(record: Mapping[str, Any], where: str) -> Continuation:
    tokens = _read_tokens(record, where)
    columns = response_columns(record, where)
    if columns == SIDES:
        raise OtterError(f"{where} is a preference pair; drafts learn what the base itself says: give it to --prompts")
    if not columns or (tokens is not None and not is_present(record.get(columns[0]))):
        if tokens is None:
            there = column_names(record)
            raise OtterError(f"{where}: no columns prompt and response, or {' and '.join(TOKENS)} (there: {there})")
        return Continuation(None, tokens, where)
    return Continuation(read_dialogues(record, columns, where)[0], tokens, where)


def _read_tokens(record: Mapping[str, Any], where: str) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    present = [name for name in TOKENS if is_present(record.get(name))]
    if not present:
        return None
    if len(present) == 1:
        raise OtterError(f"{where}: column {present[0]} needs the other of {' and '.join(TOKENS)} beside it")
    ids = []
    for name in TOKENS:
        value = of_python(record[name])
        if not isinstance(value, list | tuple) or not all(type(token) is int for token in value):
            raise OtterError(f"{where}: column {name} must be a list of token ids")
        ids.append(tuple(value))
    return ids[0], ids[1]


def continuation_examples(
    rows: Iterable[Continuation], tokenizer: PreTrainedTokenizerBase, limits: Limits
) -> StoredExamples:
    """Turns continuations into examples, on the disk: the prompt, and the response as its branch.

    Where a row has tokens they are used as they are, so that the draft learns what the base chose; its text must be
    what they say. Responses of one token are left out: nothing is drafted after them.

    Raises:
        OtterError: tokens are not of this tokenizer, the chat template refuses a prompt, or no row is left.
    """
    examples = on_disk(_examples(rows, tokenizer, limits))
    if not examples:
        raise OtterError("no usable continuations: a response needs two tokens or more")
    return examples


def _examples(rows: Iterable[Continuation], tokenizer: PreTrainedTokenizerBase, limits: Limits) -> Iterator[Example]:
    for index, row in enumerate(rows):
        prompt, response = continuation_tokens(row, tokenizer, limits)
        if len(response) > 1:
            yield Example(index, tuple(prompt), (tuple(response),))


def continuation_tokens(
    row: Continuation, tokenizer: PreTrainedTokenizerBase, limits: Limits
) -> tuple[list[int], list[int]]:
    """Returns the tokens of the prompt and of the response: those that the row has, else those of its text.

    Raises:
        OtterError: tokens are not of this tokenizer, or the chat template refuses a prompt.
    """
    if row.tokens is None:
        assert row.dialogue is not None
        return dialogue_tokens(row.dialogue, tokenizer, limits, row.where)
    _check_tokens(row, tokenizer)
    prompt, response = (list(part) for part in row.tokens)
    return prompt[-limits.prompt :], response[: limits.response]


def _check_tokens(row: Continuation, tokenizer: PreTrainedTokenizerBase) -> None:
    assert row.tokens is not None
    if not all(0 <= token < len(tokenizer) for part in row.tokens for token in part):
        raise OtterError(f"{row.where} has tokens that the base's tokenizer does not have: they are of another base")
    if row.dialogue is None:
        return
    text = tokenizer.decode(list(row.tokens[1]), skip_special_tokens=True)
    if text.split() != row.dialogue.response.split():
        raise OtterError(
            f"{row.where}: response_tokens say {text[:40]!r} and the response is {row.dialogue.response[:40]!r}: the "
            "tokens are of another base; leave out the columns of tokens, or generate the text with this base"
        )

"""Reads the turns before the responses of a record, from prompt, question or system columns, and joins both."""

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from otterlm.errors import OtterError
from otterlm.training.data.conversations import (
    CONVERSATIONS,
    Dialogue,
    Turn,
    clean,
    is_present,
    read_prompt,
    read_turns,
    split_response,
    strip,
)
from otterlm.training.data.records import check_names, plain_name

PROMPT_COLUMNS = ("prompt", "question", "query", "instruction", "input")
"""The columns that can hold a prompt. `input` continues `instruction`, as in Alpaca's data. Columns of `CONVERSATIONS`
can hold turns, and are read where all of these are empty."""
SYSTEM = ("system", "system_prompt")
UNREAD = (
    "context",
    "history",
    "documents",
    "tools",
    "chat_template_kwargs",
    "image",
    "images",
    "audio",
    "video",
    "videos",
)
"""These columns change what a response means, and cannot be read."""

_UNREAD = frozenset(map(plain_name, UNREAD))
_LIKE_SYSTEM = re.compile(r"(sys|system)(prompt|text|content|message|instruction)s?")
_LIKE_PROMPT = re.compile(
    r"(user|human|input|full|raw|chat)?"
    r"(prompt|question|query|instruction|input|message|problem|post|dialog|dialogue|conversation|turn|text)s?"
    r"(text|content|message|history)?|user|human"
)
"""Names of columns, without their underscores, that hold a prompt in other people's data."""


def read_context(record: Mapping[str, Any], where: str, responses: Collection[str] = ()) -> list[Turn]:
    """Reads the turns before a record's responses, from the columns `PROMPT_COLUMNS`, `CONVERSATIONS` and `SYSTEM`.

    Args:
        record: columns to values.
        where: the row, for errors.
        responses: the columns that hold responses; they are skipped.

    Raises:
        OtterError: a column cannot be read, or two hold different turns.
    """
    columns = {name: value for name, value in record.items() if name not in responses and _has_text(value)}
    unread = [name for name in columns if plain_name(name) in _UNREAD]
    if unread:
        raise OtterError(
            f"{where}: column {unread[0]} cannot be read: leave it out, or put what it says into the prompt"
        )
    check_names(columns, (*PROMPT_COLUMNS, *CONVERSATIONS, *SYSTEM), where)
    unread = [name for name in columns if name not in SYSTEM and _LIKE_SYSTEM.fullmatch(plain_name(name))]
    if unread:
        raise OtterError(f"{where}: column {unread[0]!r} is not read: call it system, or leave it out")
    turns = _read_prompt_columns(columns, where)
    if responses and turns and turns[-1][0] == "assistant" and not columns.keys() & set(PROMPT_COLUMNS):
        values = {name: record[name] for name in responses if is_present(record.get(name))}
        turns = _without_response(turns, values, where)
    for name in (name for name in SYSTEM if name in columns):
        if not isinstance(columns[name], str):
            raise OtterError(f"{where}: column {name} must be a text, not {type(columns[name]).__name__}")
        system = clean(columns[name], f"{where}, column {name}")
        if not turns or turns[0][0] != "system":
            turns.insert(0, ("system", system))
        elif turns[0][1].strip() != system.strip():
            raise OtterError(f"{where}: column {name} and another column hold different system turns: keep one")
    if columns.keys() & set(PROMPT_COLUMNS):
        _check_conversations(columns, turns, [record.get(name) for name in responses], where)
    return turns


def _check_conversations(columns: Mapping[str, Any], turns: list[Turn], responses: Sequence[Any], where: str) -> None:
    """Checks that a whole conversation beside the prompt and its responses says no more than they, but a response."""
    names = [name for name in CONVERSATIONS if name in columns]
    if not names:
        return
    read = [read_turns(value, where) or [("assistant", str(value))] for value in responses if _has_text(value)]
    known = [*turns, *(turn for response in read for turn in response)]
    for name in names:
        others = read_prompt(columns[name], f"{where}, column {name}")
        others = others[:-1] if others and others[-1][0] == "assistant" else others
        if others and not _contains_all(known, others):
            first = next(column for column in PROMPT_COLUMNS if column in columns)
            raise OtterError(f"{where}: columns {first} and {name} hold different prompts: keep one")


def check_no_prompt(record: Mapping[str, Any], responses: Collection[str], where: str) -> None:
    """Checks that no column of another name seems to hold the prompt of responses that have none.

    Raises:
        OtterError: one does.
    """
    for name, value in record.items():
        texts = name not in responses and isinstance(value, str | list | Mapping) and _has_text(value)
        if texts and _LIKE_PROMPT.fullmatch(plain_name(name)):
            raise OtterError(
                f"{where}: column {name!r} is not read, and {' and '.join(responses)} have no prompt: call it prompt, "
                "or leave it out"
            )


def _read_prompt_columns(columns: Mapping[str, Any], where: str) -> list[Turn]:
    prompts = {name: columns[name] for name in PROMPT_COLUMNS if name in columns}
    if list(prompts) == ["instruction", "input"] and all(isinstance(text, str) for text in prompts.values()):
        prompts = {"instruction": "\n\n".join(prompts.values())}
    prompts = prompts or {name: columns[name] for name in CONVERSATIONS if name in columns}
    read = {name: read_prompt(value, f"{where}, column {name}") for name, value in prompts.items()}
    first = next(iter(read), "")
    turns = read.get(first, [])
    for name, others in read.items():
        if others and not _contains_all(turns, others):
            raise OtterError(f"{where}: columns {first} and {name} hold different prompts: keep one")
    return turns


def _without_response(turns: list[Turn], responses: Mapping[str, Any], where: str) -> list[Turn]:
    """Returns a whole conversation, which stands beside its responses, without the response at its end."""
    last = turns[-1][1].strip()
    for name, value in responses.items():
        read = read_turns(value, f"{where}, column {name}")
        if last == (str(value) if read is None else read[-1][1]).strip():
            return turns[:-1]
    texts = [name for name, value in responses.items() if isinstance(value, str)]
    if texts:
        raise OtterError(
            f"{where}: the conversation has a response, and {' and '.join(texts)} others: leave it out there"
        )
    return turns


def _contains_all(turns: Sequence[Turn], others: Sequence[Turn]) -> bool:
    """Returns whether turns contain the texts of other turns, which are no loss then."""
    return bool(others) and all(any(text in content for _, content in turns) for _, text in strip(others))


def _has_text(value: Any) -> bool:
    return is_present(value) and not (isinstance(value, str) and not value.strip())


def join(context: Sequence[Turn], response: str | Sequence[Turn], where: str) -> Dialogue:
    """Joins the turns before a response, and the response, to a dialogue.

    Args:
        context: turns. Where they end with the assistant's, the response continues it.
        response: a text, or turns: the assistant's, or a whole dialogue that repeats the context.
        where: the row, for errors.

    Raises:
        OtterError: the turns do not end with the assistant's, or are a dialogue without the context in it.
    """
    if not isinstance(response, str):
        return split_response(_merge(list(context), list(response), where), where)
    if not context or context[-1][0] != "assistant":
        return split_response([*context, ("assistant", response)], where)
    *before, (_, begun) = context
    return split_response([*before, ("assistant", begun + response)], where)


def _merge(context: list[Turn], turns: list[Turn], where: str) -> list[Turn]:
    """Joins turns to their context. They may repeat all of it, or its last turns before the response."""
    system, question = _split_system(context)
    other_system, dialogue = _split_system(turns)
    if system and other_system and strip(system) != strip(other_system):
        raise OtterError(f"{where}: the dialogue and another column hold different system turns: keep one")
    system = system or other_system
    if repeats(question, dialogue):
        return [*system, *dialogue]
    if question and question[-1][0] == "assistant" and dialogue and dialogue[0][0] == "assistant":
        *before, (role, begun) = question
        return [*system, *before, (role, begun + dialogue[0][1]), *dialogue[1:]]
    if strip(dialogue)[: len(question) - 1] == strip(question)[:-1] != () and question[-1][0] == "assistant":
        raise OtterError(f"{where}: the dialogue does not begin with the prompt that another column holds")
    if not question or "assistant" in (question[-1][0], dialogue[0][0] if dialogue else ""):
        return [*system, *question, *dialogue]
    if not _contains_all(dialogue[:-1], question):
        raise OtterError(f"{where}: the dialogue does not begin with the prompt that another column holds")
    return [*system, *dialogue]


def repeats(context: Sequence[Turn], turns: Sequence[Turn]) -> bool:
    """Returns whether turns begin with a context, or hold it right before the response.

    A response that the assistant began at the context's end continues in the response.
    """
    wanted, actual = strip(context), strip(turns)
    begun = wanted[-1][1] if wanted and wanted[-1][0] == "assistant" else ""
    while wanted and wanted[-1][0] == "assistant":
        wanted = wanted[:-1]
    starts = {0, len(actual) - 1 - len(wanted)} if wanted else set()
    return any(
        actual[start : start + len(wanted)] == wanted
        and (not begun or any(text.startswith(begun) for _, text in actual[start + len(wanted) :][:1]))
        for start in starts
        if start >= 0
    )


def _split_system(turns: list[Turn]) -> tuple[list[Turn], list[Turn]]:
    count = 1 if turns and turns[0][0] == "system" else 0
    return turns[:count], turns[count:]

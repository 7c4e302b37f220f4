"""Reads the prompts of records, from the columns that are read beside responses, too."""

from collections.abc import Mapping
from typing import Any

from otterlm.errors import OtterError
from otterlm.training.data.context import PROMPT_COLUMNS, read_context
from otterlm.training.data.conversations import Prompt, Turn, is_present, read_prompt, strip
from otterlm.training.data.records import Records, column_names, numbered_records, source_name
from otterlm.training.data.rows import read_dialogues, response_columns


class ReadPrompt(tuple[Turn, ...]):
    """The prompt remembers its row in `where`, for errors, which is no part of its value."""

    where: str


HELP = "Prompts (prompt, question, text, or the dialogues of pairs): file or hub dataset."
"""The help of options that `read_prompts` reads."""


def read_prompts(source: Records, split: str = "train") -> list[Prompt]:
    """Reads prompts as chat turns, each once.

    Args:
        source: see `otterlm.training.data.records.read_records`. Of each record the turns before its response,
            see `otterlm.training.data.rows.read_rows`; where there is no response, what
            `otterlm.training.data.context.read_context` reads (`prompt`, `question`, `messages`, ...), else `text`,
            else the first of `turns` (as MT-Bench has them). The response that ends a dialogue is left out.
        split: which split, where there are several.

    Raises:
        OtterError: it cannot be read, a row has none of the columns, or there are no rows.
    """
    prompts: dict[Prompt, None] = {}
    for where, record in numbered_records(source, split):
        prompt = ReadPrompt(_read(record, where))
        if not prompt:
            raise OtterError(f"{where}: no prompt stands before the response")
        prompt.where = where
        prompts.setdefault(prompt)
    if not prompts:
        raise OtterError(f"{source_name(source)} holds no prompts")
    return list(prompts)


def _read(record: Mapping[str, Any], where: str) -> Prompt:
    responses = response_columns(record, where)
    context = read_context(record, where, responses)
    has_prompt = any(role != "system" for role, _ in context)
    if "chosen" in responses or (has_prompt and responses):
        return read_dialogues(record, responses, where)[0].prompt or ()
    if is_present(record.get("text")):
        context += read_prompt(record["text"], f"{where}, column text")
    elif not has_prompt and is_present(record.get("turns")):
        context += read_prompt(_first(record["turns"], where), f"{where}, column turns")
    elif not context:
        there = column_names(record)
        raise OtterError(f"{where}: no column prompt, question, messages, text, turns or chosen (there: {there})")
    if context and context[-1][0] == "assistant":
        if any(is_present(record.get(column)) for column in PROMPT_COLUMNS):
            raise OtterError(f"{where}: the prompt ends with the assistant's words; it must end with what is answered")
        context.pop()
    return strip(context)


def _first(turns: Any, where: str) -> Any:
    """Returns the first turn of a list of texts; messages unchanged."""
    if isinstance(turns, str) or not hasattr(turns, "__getitem__"):
        raise OtterError(f"{where}: turns must be a list, not {type(turns).__name__}")
    return turns[0] if isinstance(turns[0], str) else turns

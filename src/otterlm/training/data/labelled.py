"""Reads labelled texts out of records: a text or a dialogue, its labels, and the passages that made them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from otterlm.errors import OtterError
from otterlm.training.data.context import read_context
from otterlm.training.data.conversations import (
    CONVERSATIONS,
    Dialogue,
    as_written,
    clean,
    is_present,
    of_python,
    read_prompt,
    read_turns,
    split_response,
    strip,
)
from otterlm.training.data.corpora import read_field
from otterlm.training.data.labels import LABELS, LabelNames, Marks, read_label, read_marks, read_printed_list
from otterlm.training.data.records import (
    Records,
    at_least_one,
    check_names,
    column_names,
    numbered_records,
    source_name,
)
from otterlm.training.data.rows import read_dialogues, response_columns


@dataclass(frozen=True, slots=True)
class Span:
    """A passage: characters `[start, end)` of the response as it is read, and the offence that it is (None: the row's
    only one)."""

    start: int
    end: int
    label: str | None = None


@dataclass(frozen=True, slots=True)
class LabelledRow:
    """A row is a text with labels.

    Attributes:
        text: the dialogue; of a prompt alone, with an empty response.
        marks: of the response, or of the text, or of a prompt alone; None: nothing is known.
        prompt_marks: of a prompt that has a response.
        spans: None: passages were not marked.
        where: what errors call the row.
    """

    text: Dialogue
    marks: Marks | None
    prompt_marks: Marks | None = None
    spans: tuple[Span, ...] | None = None
    where: str = field(default="a labelled text", compare=False, repr=False)


def read_labelled_rows(source: Records, names: LabelNames = LabelNames(), split: str = "train") -> list[LabelledRow]:
    """Reads texts with labels.

    Args:
        source: see `otterlm.training.data.records.read_records`. A record has a `text`, a `prompt` alone, a `prompt`
            and a `response`, or `messages` (read as `otterlm.training.data.rows.read_rows` does; a text that quotes a
            conversation and does not end as one is a plain text); and one or more of

            - `label`: a name, 0 or 1, true or false, or the number of one of several classes;
            - `labels`, `categories`: the same, a list of names, or a mapping of names to true or false, in which a
              name that is missing is not known;
            - `prompt_label`: of the prompt, beside a response;
            - `spans`: the offensive passages as `[start, end)` characters of the text or the response, also as
              `[start, end, label]` or `{"start": ..., "end": ..., "label": ...}`; an empty list: there is none.
        names: which columns are read, and what the labels mean.
        split: which split, where there are several.

    Raises:
        OtterError: the source cannot be read or is empty, or a row cannot be read; the row is named.
    """
    return list(iterate_labelled_rows(source, names, split))


def iterate_labelled_rows(
    source: Records, names: LabelNames = LabelNames(), split: str = "train"
) -> Iterator[LabelledRow]:
    """Reads texts with labels one by one, see `read_labelled_rows`."""
    rows = (parse_labelled(record, names, where) for where, record in numbered_records(source, split))
    yield from at_least_one(rows, f"{source_name(source)} holds no rows; expected columns text and label")


def parse_labelled(record: Mapping[str, Any], names: LabelNames, where: str) -> LabelledRow:
    """Reads one record as a row. Errors as for `read_labelled_rows`."""
    check_names(record, (names.label_column, *LABELS, "prompt_label", "spans"), where)
    record = _renamed(record, names, where)
    text, column = _read_text(record, where)
    marks = read_marks(record, names, where)
    spans = _read_spans(record, column, text, where)
    prompt_marks = None
    if is_present(record.get("prompt_label")):
        prompt_marks = read_label(record["prompt_label"], names, f"{where}, column prompt_label")
    if prompt_marks is not None and not text.response:
        raise OtterError(f"{where}: prompt_label stands beside a response; a prompt alone has a label")
    if marks is None and spans is None and prompt_marks is None:
        there = column_names(record)
        raise OtterError(f"{where}: no column {names.label_column}, labels, categories or spans (there: {there})")
    if spans and marks is not None and not marks.offences:
        raise OtterError(f"{where}: spans mark an offence, and the label says that there is none")
    return LabelledRow(text, marks, prompt_marks, spans, where)


def _renamed(record: Mapping[str, Any], names: LabelNames, where: str) -> dict[str, Any]:
    """Returns the record with its text in `text`, and its label under the name of its column."""
    renamed = dict(record)
    if "." in names.label_column:
        renamed[names.label_column] = read_field(record, names.label_column, where)
    if names.text_column != "text":
        renamed.pop(names.text_column.split(".")[0], None)
        renamed["text"] = read_field(record, names.text_column, where)
    return renamed


def _read_text(record: Mapping[str, Any], where: str) -> tuple[Dialogue, str]:
    """Returns the dialogue, and the column that holds its response; of a prompt alone, an empty name."""
    columns = response_columns(record, where)
    if columns and columns[0] == "chosen":
        raise OtterError(f"{where}: a labelled row has one text, not chosen and rejected")
    if not columns or not is_present(record.get(columns[0])):
        columns = _answered(record, where) or columns
        context = [] if columns and is_present(record.get(columns[0])) else read_context(record, where)
        if context and context[-1][0] != "assistant":
            return Dialogue(strip(context), ""), ""
        columns = columns or ["text"]
    if isinstance(record.get("text"), str) and columns == ["text"] and not read_context(record, where, columns):
        dialogue = _read_alone(record["text"], where)
    else:
        dialogue = read_dialogues(record, columns, where)[0]
    if not dialogue.response.strip():
        raise OtterError(f"{where}: column {columns[0]} holds an empty text")
    return dialogue, columns[0]


def _answered(record: Mapping[str, Any], where: str) -> list[str]:
    """Returns the column of a conversation that ends with the assistant's words, if there is one."""
    for column in (name for name in CONVERSATIONS if is_present(record.get(name))):
        turns = read_prompt(record[column], f"{where}, column {column}")
        return [column] if turns and turns[-1][0] == "assistant" else []
    return []


def _read_alone(text: str, where: str) -> Dialogue:
    """Reads a text without a prompt: a dialogue that the assistant ends, or a raw text, whatever it quotes."""
    turns = read_turns(text, f"{where}, column text")
    if turns is None or turns[-1][0] != "assistant":
        return Dialogue(None, clean(text, where))
    return split_response(turns, where)


def _read_spans(record: Mapping[str, Any], column: str, text: Dialogue, where: str) -> tuple[Span, ...] | None:
    """Reads the passages of the response."""
    value: Any = of_python(record.get("spans"))
    if isinstance(value, str) and value.strip():
        value = read_printed_list(value, f"{where}, column spans")
    if not isinstance(value, list | tuple):
        if not is_present(value):
            return None
        raise OtterError(f"{where}: spans must be a list of [start, end), not {type(value).__name__}")
    if not column:
        raise OtterError(f"{where}: spans are of a text or a response, and there is only a prompt")
    written = as_written(record[column], f"{where}, column {column}")
    # A response ends where the text does. Its prompt may have begun it.
    offset = 0 if text.prompt is None else len(clean(written, where).rstrip()) - len(text.response)
    spans = []
    for number, each in enumerate(value, start=1):
        span_name = f"{where}, span {number}"
        start, end, label = _read_span(each, span_name)
        if not 0 <= start < end <= len(written):
            raise OtterError(f"{span_name}: [{start}, {end}) is no passage of {len(written)} characters")
        # Line ends and what stands before the response are not part of it.
        start, end = (len(clean(written[:edge], where)) - offset for edge in (start, end))
        start, end = max(0, start), min(end, len(text.response))
        if start >= end:
            raise OtterError(f"{span_name} lies outside the response")
        spans.append(Span(start, end, label))
    return tuple(spans)


def _read_span(value: Any, where: str) -> tuple[int, int, str | None]:
    if isinstance(value, Mapping):
        value = [value.get("start"), value.get("end"), value.get("label")]
    parts: Sequence[Any] = value if isinstance(value, list | tuple) else ()
    whole = [int(part) for part in parts[:2] if type(part) is int or (isinstance(part, float) and part.is_integer())]
    label = parts[2] if len(parts) == 3 else None
    if len(whole) != 2 or len(parts) > 3 or not (label is None or isinstance(label, str)):
        raise OtterError(f"{where}: a span is [start, end), such as [8, 40], got {value!r}")
    return whole[0], whole[1], None if label is None else clean(label, where)

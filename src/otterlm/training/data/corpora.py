"""Reads the texts of two corpora, one a language model should write like and one it should not."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from otterlm.errors import OtterError
from otterlm.training.data.chat import plain_tokens
from otterlm.training.data.conversations import clean
from otterlm.training.data.packing import Example
from otterlm.training.data.records import Records, numbered_records, source_name

WANTED, UNWANTED = 1, 0
"""The labels of texts name their corpus."""


def read_texts(source: Records, column: str = "text") -> list[str]:
    """Reads the texts of a file or dataset.

    Args:
        source: see `otterlm.training.data.records.read_records`.
        column: which holds the text; `a.b` is field b of column a.

    Raises:
        OtterError: it cannot be read, a row lacks the column, or there are no rows; the row is named.
    """
    texts = [text for text, _ in _read(source, column, None)]
    if not texts:
        raise OtterError(f"{source_name(source)} holds no rows; expected a column {column}")
    return texts


def read_labelled(
    source: Records, positive: Sequence[str], negative: Sequence[str], column: str = "text", label: str = "label"
) -> tuple[list[str], list[str]]:
    """Reads the wanted and the unwanted texts of one file or dataset. Rows with other labels are left out.

    Args:
        source: see `otterlm.training.data.records.read_records`.
        positive, negative: the labels of wanted and unwanted texts, as they are printed.
        column, label: which columns hold text and label.

    Raises:
        OtterError: as in `read_texts`, or one side has no text.
    """
    sides: dict[str, list[str]] = {"positive": [], "negative": []}
    for text, value in _read(source, column, label):
        for side, labels in (("positive", positive), ("negative", negative)):
            if value in labels:
                sides[side].append(text)
    for side, labels in (("positive", positive), ("negative", negative)):
        if not sides[side]:
            raise OtterError(
                f"{source_name(source)} has no row with a {side} label ({', '.join(labels) or 'none given'}) in {label}"
            )
    return sides["positive"], sides["negative"]


def _read(source: Records, column: str, label: str | None) -> Iterator[tuple[str, str]]:
    for where, record in numbered_records(source):
        text = read_field(record, column, where)
        if not isinstance(text, str) or not text.strip():
            raise OtterError(f"{where}: {column} is empty or not a text")
        yield clean(text, where), "" if label is None else str(read_field(record, label, where))


def read_field(record: Mapping[str, Any], column: str, where: str) -> Any:
    """The value of a column of a record; `a.b` is field b of column a.

    Raises:
        OtterError: it is missing or null.
    """
    value: Any = record
    for name in column.split("."):
        if not isinstance(value, Mapping) or value.get(name) is None:
            present = ", ".join(sorted(map(str, record)))
            raise OtterError(f"{where}: {column} is missing (columns there: {present})")
        value = value[name]
    return value


def tokenize_corpora(
    positive: Sequence[str], negative: Sequence[str], tokenizer: PreTrainedTokenizerBase, longest: int
) -> list[Example]:
    """Makes examples of texts, with their corpus as label. A longer text keeps its start.

    The tokens are those of a plain text. No end of sequence is added: a corpus may hold fragments.

    Raises:
        OtterError: one side has no text of at least two tokens.
    """
    examples: list[Example] = []
    row = 0
    for side, texts in ((WANTED, positive), (UNWANTED, negative)):
        before = len(examples)
        for text in texts:
            tokens = tuple(plain_tokens(text, tokenizer, f"text {row + 1}", add_special_tokens=True)[:longest])
            if len(tokens) > 1:
                examples.append(Example(row, (), (tokens,), label=side))
            row += 1
        if len(examples) == before:
            raise OtterError("one of the two corpora has no text of at least two tokens")
    return examples

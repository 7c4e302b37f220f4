"""Reads the texts of two corpora, one a language model should write like and one it should not."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from otterlm.errors import OtterError
from otterlm.training.data.chat import plain_tokens
from otterlm.training.data.conversations import clean
from otterlm.training.data.packing import Example
from otterlm.training.data.records import Records, at_least_one, column_names, numbered_records, source_name
from otterlm.training.data.stored_items import StoredItems

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
    return list(iterate_texts(source, column))


def iterate_texts(source: Records, column: str = "text") -> Iterator[str]:
    """Reads the texts one by one, see `read_texts`."""
    texts = (text for text, _ in _read(source, column, None))
    yield from at_least_one(texts, f"{source_name(source)} holds no rows; expected a column {column}")


def read_labelled(
    source: Records, positive: Sequence[str], negative: Sequence[str], column: str = "text", label: str = "label"
) -> tuple[StoredItems[str], StoredItems[str]]:
    """Reads the wanted and the unwanted texts of one file or dataset, onto the disk.

    Rows with other labels are left out.

    Args:
        source: see `otterlm.training.data.records.read_records`.
        positive, negative: the labels of wanted and unwanted texts, as they are printed.
        column, label: which columns hold text and label.

    Raises:
        OtterError: as in `read_texts`, or one side has no text.
    """
    both = StoredItems(_read(source, column, label))  # once: a stream has no second time
    sides = [StoredItems(text for text, value in both if value in labels) for labels in (positive, negative)]
    for side, texts, labels in zip(("positive", "negative"), sides, (positive, negative), strict=True):
        if not texts:
            there = sorted({value for _, value in both})
            raise OtterError(
                f"{source_name(source)} has no row with a {side} label ({', '.join(labels) or 'none given'}) in "
                f"{label} (labels there: {', '.join(there[:8])}{', ...' if len(there) > 8 else ''})"
            )
    return sides[0], sides[1]


def _read(source: Records, column: str, label: str | None) -> Iterator[tuple[str, str]]:
    for where, record in numbered_records(source):
        text = read_field(record, column, where)
        if not isinstance(text, str) or not text.strip():
            raise OtterError(f"{where}: {column} is empty or not a text")
        value = "" if label is None else read_field(record, label, where)
        # Pandas and parquet make 1.0 of the 1 of a column in which a label is missing.
        yield clean(text, where), str(int(value) if isinstance(value, float) and value.is_integer() else value)


def read_field(record: Mapping[str, Any], column: str, where: str) -> Any:
    """The value of a column of a record; `a.b` is field b of column a.

    Raises:
        OtterError: it is missing or null.
    """
    value: Any = record
    for name in column.split("."):
        if not isinstance(value, Mapping) or value.get(name) is None:
            there = column_names(record)
            raise OtterError(f"{where}: {column} is missing (columns there: {there})")
        value = value[name]
    return value


def tokenize_corpora(
    positive: Iterable[str], negative: Iterable[str], tokenizer: PreTrainedTokenizerBase, longest: int
) -> list[Example]:
    """Makes examples of texts, with their corpus as label. A longer text keeps its start.

    The tokens are those of a plain text. No end of sequence is added: a corpus may hold fragments.

    Raises:
        OtterError: one side has no text of at least two tokens.
    """
    return list(iterate_corpora(positive, negative, tokenizer, longest))


def iterate_corpora(
    positive: Iterable[str], negative: Iterable[str], tokenizer: PreTrainedTokenizerBase, longest: int
) -> Iterator[Example]:
    """Makes the examples one by one, see `tokenize_corpora`."""
    row = 0
    for side, texts in ((WANTED, positive), (UNWANTED, negative)):
        empty = True
        for text in texts:
            tokens = tuple(plain_tokens(text, tokenizer, f"text {row + 1}", add_special_tokens=True)[:longest])
            if len(tokens) > 1:
                empty = False
                yield Example(row, (), (tokens,), label=side)
            row += 1
        if empty:
            raise OtterError("one of the two corpora has no text of at least two tokens")

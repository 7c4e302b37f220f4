"""Gives the numbers of classes the names that their dataset has for them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow


class ClassNumber(int):
    """A class number is a number in every way, and its dataset has a name for it."""

    name: str

    def __new__(cls, number: int, name: str) -> "ClassNumber":
        """Makes the number of a class with this name."""
        made = super().__new__(cls, number)
        made.name = name
        return made


def with_class_names(records: Iterable[Mapping[str, Any]], features: Any) -> Iterator[Mapping[str, Any]]:
    """Yields records in which numbers of classes are `ClassNumber`.

    Args:
        records: of a dataset.
        features: its `datasets.Features`; None: not known, and the records stay as they are.
    """
    by_column = {column: _names(feature) for column, feature in (features or {}).items()}
    classes = {column: names for column, names in by_column.items() if names}
    if not classes:
        yield from records
        return
    for record in records:
        yield dict(record) | {name: _named(record.get(name), names) for name, names in classes.items()}


def features_of(schema: pyarrow.Schema) -> Any:
    """Returns the `datasets.Features` that a file of parquet was written with; None where there are none."""
    if b"huggingface" not in (schema.metadata or {}):
        return None
    from datasets import Features

    return Features.from_arrow_schema(schema)


def _names(feature: Any) -> Sequence[str]:
    """Returns the names of a feature of class numbers, or of lists of them; of any other feature none."""
    while isinstance(feature, list) or hasattr(feature, "feature"):
        feature = feature[0] if isinstance(feature, list) else feature.feature
    return getattr(feature, "names", None) or ()


def _named(value: Any, names: Sequence[str]) -> Any:
    if isinstance(value, list):
        return [_named(each, names) for each in value]
    if type(value) is int and 0 <= value < len(names):
        return ClassNumber(value, names[value])
    return value

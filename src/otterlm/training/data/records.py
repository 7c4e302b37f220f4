"""Reads records, each a mapping of columns to values, from local files, the hub, or Python objects."""

import functools
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from otterlm.errors import OtterError, reason
from otterlm.training.data.class_names import features_of, with_class_names
from otterlm.training.data.data_files import PACKED, READABLE, UNREADABLE, read_file, suffix_of

Item = TypeVar("Item")

Records = str | Path | Iterable[Mapping[str, Any]]
"""Records come from a file, a folder, a dataset on the hub by its name, or are passed themselves."""


def read_records(source: Records, split: str = "train") -> Iterator[Mapping[str, Any]]:
    """Reads records one by one.

    Args:
        source: one of

            - a local `.json`, `.jsonl`, `.csv`, `.tsv`, `.txt`, `.parquet` or `.arrow` file, also packed (`.gz`,
              `.bz2`, `.xz`, `.zst`); a line of a `.txt` file is the column `text` of a record;
            - a folder of `save_to_disk`, or one with one data file, or with the shards of one;
            - the name of a dataset on the hub;
            - a `datasets.Dataset` or `IterableDataset`, a pandas or Arrow table, or any iterable of mappings.
        split: which split, where there are several.

    Raises:
        OtterError: the source is missing or not what its name says, or a record has no named columns.
    """
    for _, record in numbered_records(source, split):
        yield record


def numbered_records(source: Records, split: str = "train") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Reads records one by one, each with its name in errors, such as `pairs.jsonl, row 5`. See `read_records`."""
    name = str(source) if isinstance(source, str | Path) else f"the {type(source).__name__}"
    for number, record in enumerate(_records(source, split), start=1):
        where = f"{name}, row {number}"
        if not isinstance(record, Mapping):
            raise OtterError(f"{where}: expected an object with named columns, found {type(record).__name__}")
        yield where, record


def at_least_one(items: Iterable[Item], refusal: str) -> Iterator[Item]:
    """Yields items one by one.

    Raises:
        OtterError: there is none; it says the refusal.
    """
    empty = True
    for item in items:
        empty = False
        yield item
    if empty:
        raise OtterError(refusal)


def column_names(record: Mapping[str, Any]) -> str:
    """Returns the columns of a record, for errors."""
    return ", ".join(sorted(map(str, record))) or "none"


def check_names(columns: Iterable[Any], known: Collection[str], where: str) -> None:
    """Checks that no column differs from a known one only by capitals, spaces, hyphens or underscores.

    Such a column would not be read, in silence.

    Raises:
        OtterError: one does.
    """
    plain = {plain_name(name): name for name in known}
    for column in columns:
        name = plain.get(plain_name(column))
        if name is not None and column not in known:
            raise OtterError(f"{where}: column {column!r} is not read: call it {name}, or leave it out")


@functools.lru_cache(maxsize=1000)
def plain_name(name: Any) -> str:
    """Returns the name of a column in small letters, and its letters and digits alone."""
    return re.sub(r"[\W_]+", "", str(name)).lower()


def source_name(source: Records) -> str:
    """Returns a short name of a source: a file's without its folder."""
    return Path(source).name if isinstance(source, str | Path) else type(source).__name__


def _records(source: Records, split: str) -> Iterator[Any]:
    if isinstance(source, str | Path):
        path = Path(source).expanduser()
        if path.is_dir():
            return _read_folder(path, split)
        if path.exists() or _looks_local(str(source)):
            return read_file(path)
        return _read_hub(str(source), split)
    if isinstance(source, Mapping):
        return iter(_choose_split(source, split))
    if hasattr(source, "with_format"):  # a dataset of `datasets`
        return with_class_names(source.with_format(None), getattr(source, "features", None))
    if hasattr(source, "to_pylist"):  # an Arrow table
        table: Any = source
        return with_class_names(table.to_pylist(), features_of(table.schema))
    if hasattr(source, "to_dict") and hasattr(source, "columns"):  # a pandas table
        if not source.columns.is_unique:
            raise OtterError(f"two columns of the table have one name ({', '.join(map(str, source.columns))})")
        return iter(source.to_dict("records"))
    if not isinstance(source, Iterable):
        raise OtterError(f"records cannot be read from a {type(source).__name__}")
    return iter(source)


def _looks_local(name: str) -> bool:
    path = Path(name)
    suffixes = {suffix_of(path), path.suffix.lower()}
    known = bool(suffixes & (READABLE | UNREADABLE | PACKED.keys()))
    return known or path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1


def _read_hub(name: str, split: str) -> Iterator[Any]:
    from datasets import load_dataset

    try:
        dataset = load_dataset(name, split=split)
        yield from with_class_names(dataset, dataset.features)
    except Exception as error:
        raise OtterError(f"{name} is no local file, and no dataset with a split {split}: {reason(error)}") from error


def _read_folder(folder: Path, split: str) -> Iterator[Any]:
    if (folder / "dataset_info.json").exists() or (folder / "dataset_dict.json").exists():
        from datasets import load_from_disk

        try:
            saved = load_from_disk(str(folder))
        except Exception as error:
            raise OtterError(f"{folder} cannot be read as a saved dataset: {reason(error)}") from error
        yield from _records(_choose_split(saved, split, str(folder)) if isinstance(saved, Mapping) else saved, split)
        return
    files = sorted(path for path in folder.iterdir() if suffix_of(path) in READABLE and not path.name.startswith("."))
    if not files:
        raise OtterError(f"{folder} is a folder without data files: give a file")
    if len({_SHARD.sub("", path.name) for path in files}) > 1:
        raise OtterError(f"{folder} is a folder: give one of its files ({', '.join(path.name for path in files[:5])})")
    for path in files:
        yield from read_file(path)


_SHARD = re.compile(r"-(\d+-of-\d+|\d{5,})(?=\.)")
"""The shards of one file have names such as `train-00000-of-00002.parquet`, or `text-00000.parquet`."""


def _choose_split(splits: Mapping[str, Any], split: str, name: str = "the data") -> Iterable[Any]:
    names = ", ".join(map(str, splits))
    columns = any(isinstance(value, list | str | int | float) for value in splits.values())
    if columns:
        raise OtterError(f"expected a list of records, found one mapping ({names}): see datasets.Dataset.from_dict")
    if split not in splits:
        raise OtterError(f"{name} has no split {split}: choose one of {names or 'none'}, such as data[NAME]")
    return splits[split]

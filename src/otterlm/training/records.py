"""Records, one mapping of columns to values each, from local files or the hub."""

import csv
import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from otterlm.errors import OtterError, reason


def read_records(source: str | Path, split: str = "train") -> Iterator[Mapping[str, Any]]:
    """Reads records one by one.

    Args:
        source: a local `.json`, `.jsonl`, `.csv` or `.txt` file (also with `.gz`), or the name of a dataset on the hub.
            A line of a `.txt` file is the column `text` of a record.
        split: which split of a hub dataset.

    Raises:
        OtterError: the file is missing or not what its name says, or there is no such dataset.
    """
    path = Path(source)
    if path.exists() or path.suffix in {".gz", ".json", ".jsonl", ".csv", ".txt"}:
        return _read_file(path)
    return _read_hub(str(source), split)


def _read_hub(name: str, split: str) -> Iterator[Mapping[str, Any]]:
    from datasets import load_dataset

    try:
        yield from load_dataset(name, split=split)
    except Exception as error:
        raise OtterError(f"{name} is neither a local file nor a dataset that can be loaded: {reason(error)}") from error


def _read_file(path: Path) -> Iterator[Mapping[str, Any]]:
    if not path.is_file():
        raise OtterError(f"{path}: no such file")
    kind = (path.with_suffix("") if path.suffix == ".gz" else path).suffix
    try:
        # gzip.open and open take the same arguments here.
        opener: Callable[..., IO[str]] = gzip.open if path.suffix == ".gz" else open
        with opener(path, "rt", encoding="utf-8-sig") as file:
            if kind == ".csv":
                yield from csv.DictReader(file)
            elif kind == ".txt":
                yield from ({"text": line.rstrip("\n")} for line in file if line.strip())
            else:
                yield from _read_json(file.read(), path)
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
        raise OtterError(f"{path} cannot be read: {error}") from error


def _read_json(text: str, path: Path) -> Iterator[Mapping[str, Any]]:
    """One JSON array, or one JSON object a line, whatever the file is called."""
    if text.lstrip().startswith("["):
        try:
            yield from json.loads(text)
        except (ValueError, RecursionError) as error:
            raise OtterError(f"{path} is not valid JSON: {error}") from error
        return
    # Not splitlines(): JSON strings may hold U+2028 and friends, which are line ends to it and not to JSON.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield json.loads(line)
            except (ValueError, RecursionError) as error:
                raise OtterError(f"{path}, line {number} is not valid JSON: {error}") from error

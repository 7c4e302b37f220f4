"""Reads the records of one data file: JSON, CSV, lines of text, parquet or Arrow, packed or not."""

import bz2
import codecs
import csv
import functools
import gzip
import io
import itertools
import json
import lzma
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import pyarrow
import pyarrow.parquet

from otterlm.errors import OtterError, reason
from otterlm.training.data.class_names import features_of, with_class_names

PACKED: dict[str, Callable[..., Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": lambda path, mode: pyarrow.input_stream(str(path), compression="zstd"),
}
READABLE = {".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".txt", ".parquet", ".arrow"}
UNREADABLE = {".xlsx", ".xls", ".ods", ".feather", ".pkl", ".pickle", ".zip", ".tar", ".tgz", ".7z", ".sqlite", ".db"}

csv.field_size_limit(sys.maxsize)  # csv refuses fields over 131,072 characters by default; responses can be longer


def suffix_of(path: Path) -> str:
    """Returns the lower-case suffix of a data file without that of its compression: `.csv` of `PAIRS.CSV.gz`."""
    packed = path.suffix.lower() in PACKED
    return (path.with_suffix("") if packed else path).suffix.lower()


def read_file(path: Path) -> Iterator[Mapping[str, Any]]:
    """Reads the records of a data file one by one. A file with an unknown suffix is read as JSON.

    Raises:
        OtterError: the file is missing, of a kind that cannot be read, or not what its name says.
    """
    if not path.exists():  # a pipe is read, too
        raise OtterError(f"{path}: no such file")
    kind = suffix_of(path)
    if kind in UNREADABLE:
        raise OtterError(f"{path}: {kind} files cannot be read; save it as one of {', '.join(sorted(READABLE))}")
    readers = {".csv": _read_csv, ".tsv": _read_csv, ".txt": _read_lines, ".parquet": _read_parquet}
    try:
        if kind == ".arrow":
            from datasets import Dataset

            saved = Dataset.from_file(str(path))
            yield from with_class_names(saved, saved.features)
        else:
            with PACKED.get(path.suffix.lower(), open)(path, "rb") as file:
                yield from readers.get(kind, _read_json)(file, path)
    except (OSError, EOFError, zlib.error, lzma.LZMAError, csv.Error, pyarrow.ArrowException) as error:
        raise OtterError(f"{path} cannot be read: {reason(error)}") from error
    except UnicodeDecodeError as error:
        raise OtterError(f"{path} cannot be read: it is not UTF-8 text ({error}); save it as UTF-8") from error


def _text(file: IO[bytes], path: Path, newline: str) -> io.TextIOWrapper:
    """Opens a file as text in UTF-8, or in UTF-16 where a byte-order mark says so, as Windows writes it.

    Args:
        file: the bytes.
        path: for errors.
        newline: which line ends count, see `io.TextIOWrapper`; they stay as they are.
    """
    buffered = io.BufferedReader(file)  # type: ignore[type-var]
    start = buffered.peek(1000)[:1000]
    marked = start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) and not start.startswith(codecs.BOM_UTF32_LE)
    if not marked and start.count(b"\0") > len(start) // 8:  # every second or third byte of UTF-16 or UTF-32
        raise OtterError(f"{path} cannot be read: it is not UTF-8 text; save it as UTF-8")
    return io.TextIOWrapper(buffered, "utf-16" if marked else "utf-8-sig", newline=newline)


def _read_csv(file: IO[bytes], path: Path) -> Iterator[Mapping[str, Any]]:
    lines = _text(file, path, newline="")  # keeps the line ends inside cells as they are
    reader = csv.DictReader(lines, delimiter="\t" if suffix_of(path) == ".tsv" else ",", strict=True)
    names = reader.fieldnames or []
    if len(set(names)) < len(names):
        raise OtterError(f"{path} cannot be read: two of its columns have one name ({', '.join(names)})")
    for number, record in enumerate(reader, start=1):
        if None in record:
            raise OtterError(f"{path}, row {number} has more cells than there are columns: quote cells with commas")
        missing = [name for name in names if record[name] is None]
        if missing:
            raise OtterError(
                f"{path}, row {number} has fewer cells than there are columns: {', '.join(missing)} is missing"
            )
        yield record


def _read_lines(file: IO[bytes], path: Path) -> Iterator[Mapping[str, Any]]:
    for line in _text(file, path, newline="\n"):
        if line.strip():
            yield {"text": line.removesuffix("\n").removesuffix("\r")}


ROWS_AT_ONCE = 500
"""So many rows of a parquet file are in memory together."""


def _read_parquet(file: IO[bytes], path: Path) -> Iterator[Mapping[str, Any]]:
    whole = path.suffix.lower() not in PACKED and path.is_file()  # else there is no going back to its start
    with pyarrow.parquet.ParquetFile(file if whole else pyarrow.BufferReader(file.read())) as table:
        records = itertools.chain.from_iterable(batch.to_pylist() for batch in table.iter_batches(ROWS_AT_ONCE))
        yield from with_class_names(records, features_of(table.schema_arrow))


def _read_json(file: IO[bytes], path: Path) -> Iterator[Mapping[str, Any]]:
    """Reads one array, `{"data": [...]}`, or one object a line, whatever the file's name is.

    Only one object a line is read line by line, the others whole.
    """
    # Not splitlines(): JSON strings may hold U+2028 and friends, which are line ends to it and not to JSON.
    text = _text(file, path, newline="\n")
    lines = ((number, line) for number, line in enumerate(text, start=1) if line.strip())
    first, second = next(lines, None), None
    if first is None:
        return
    if _is_value(first[1]):
        second = next(lines, None)
    if second is None:
        whole = _whole(first[1] + "".join(line for _, line in lines), path)
        yield from [_parse(first[1], f"{path}, line {first[0]}")] if whole is None else whole
        return
    for number, line in itertools.chain((first, second), lines):
        yield _parse(line, f"{path}, line {number}")


def _is_value(line: str) -> bool:
    """Returns whether a line is one JSON value."""
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _whole(text: str, path: Path) -> list[Any] | None:
    """Returns the records of a text that is one JSON value; None where it is one value a line."""
    if text.lstrip().startswith("["):
        return _parse(text, str(path))
    try:
        value = json.loads(text, object_pairs_hook=functools.partial(_object, str(path)))
    except OtterError:
        raise
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict):
        return None
    inner = value.get("data")
    listed = isinstance(inner, list) and all(isinstance(record, dict) for record in inner)
    return inner if listed else [value]


def _object(where: str, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        raise OtterError(f"{where}: two values of an object have one name ({', '.join(names)})")
    return dict(pairs)


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=functools.partial(_object, where))
    except OtterError:
        raise
    except (ValueError, RecursionError) as error:
        raise OtterError(f"{where} is not valid JSON: {error}") from error

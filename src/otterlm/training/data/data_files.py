"""Reads the records of one data file: JSON, CSV, lines of text, parquet or Arrow, packed or not."""

import bz2
import codecs
import csv
import functools
import gzip
import io
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

            yield from Dataset.from_file(str(path))
        else:
            with PACKED.get(path.suffix.lower(), open)(path, "rb") as file:
                yield from readers.get(kind, _read_json)(file, path)
    except (OSError, EOFError, zlib.error, lzma.LZMAError, csv.Error, pyarrow.ArrowException) as error:
        raise OtterError(f"{path} cannot be read: {reason(error)}") from error
    except UnicodeDecodeError as error:
        raise OtterError(f"{path} cannot be read: it is not UTF-8 text ({error}); save it as UTF-8") from error


def _decode(file: IO[bytes], path: Path) -> str:
    """Decodes a file in UTF-8, or in UTF-16 where a byte-order mark says so, as Windows writes it."""
    content = bytes(file.read())
    marked = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    text = content.decode("utf-16" if marked else "utf-8-sig")
    if "\0" in text[:1000]:
        raise OtterError(f"{path} cannot be read: it is not UTF-8 text; save it as UTF-8")
    return text


def _read_csv(file: IO[bytes], path: Path) -> Iterator[Mapping[str, Any]]:
    lines = io.StringIO(_decode(file, path), newline="")  # keeps the line ends inside cells as they are
    reader = csv.DictReader(lines, delimiter="\t" if suffix_of(path) == ".tsv" else ",", strict=True)
    names = reader.fieldnames or []
    if len(set(names)) < len(names):
        raise OtterError(f"{path} cannot be read: two of its columns have one name ({', '.join(names)})")
    for number, record in enumerate(reader, start=1):
        if None in record:
            raise OtterError(f"{path}, row {number} has more cells than there are columns: quote cells with commas")
        yield record


def _read_lines(file: IO[bytes], path: Path) -> Iterator[Mapping[str, Any]]:
    for line in _decode(file, path).split("\n"):
        if line.strip():
            yield {"text": line.removesuffix("\r")}


def _read_parquet(file: IO[bytes], path: Path) -> Iterator[Mapping[str, Any]]:
    with pyarrow.parquet.ParquetFile(pyarrow.BufferReader(file.read())) as table:
        for batch in table.iter_batches():
            yield from batch.to_pylist()


def _read_json(file: IO[bytes], path: Path) -> Iterator[Mapping[str, Any]]:
    """Reads one array, `{"data": [...]}`, or one object a line, whatever the file's name is."""
    text = _decode(file, path)
    # Not splitlines(): JSON strings may hold U+2028 and friends, which are line ends to it and not to JSON.
    lines = ((number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip())
    first = next(lines, None)
    if first is None:
        return
    whole = _whole(text, path)
    if whole is not None:
        yield from whole
        return
    yield _parse(first[1], f"{path}, line {first[0]}")
    for number, line in lines:
        yield _parse(line, f"{path}, line {number}")


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

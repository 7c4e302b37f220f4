"""Guards where records come from: every kind of file and object gives the same records, and what is none says so."""

import bz2
import csv
import gzip
import json
import lzma
import os
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pandas
import pyarrow
import pytest
from conftest import refused
from datasets import Dataset, DatasetDict

from otterlm.training.data.corpora import read_texts
from otterlm.training.data.prompts import read_prompts
from otterlm.training.data.records import read_records
from otterlm.training.data.rows import ScoredRow, read_rows

RECORDS = [
    {"prompt": "Q, 1\r\n\u2028", "chosen": "a\rb\n\nc", "rejected": ' "quoted" é😀'},
    {"prompt": "Q", "chosen": "x" * 140_000, "rejected": "\t"},
]
MESSAGES = [
    {
        "chosen": [{"role": "user", "content": "Q } {"}, {"role": "assistant", "content": side}],
        "rejected": [{"role": "user", "content": "Q } {"}, {"role": "assistant", "content": "no"}],
    }
    for side in ("it's\n", 'a "b"')
]


def table(records):
    return pandas.DataFrame(records)


def delimited(separator):
    def write(path, records):
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(records[0]), delimiter=separator)
            writer.writeheader()
            writer.writerows(records)

    return write


def write_text(make, encoding="utf-8"):
    return lambda path, records: path.write_bytes(make(records).encode(encoding))


def lines(records):
    return "".join(json.dumps(record) + "\n" for record in records)


def windows_lines(records):
    return lines(records).replace("\n", "\r\n")


WRITERS = {
    "a.json": write_text(json.dumps),
    "indented.json": write_text(lambda records: json.dumps({"data": records}, indent=2)),
    "a.jsonl": write_text(lines),
    "a.ndjson": write_text(lines),
    "nothing": write_text(lines),
    "windows.jsonl": write_text(windows_lines, "utf-8-sig"),
    "utf16.JSONL": write_text(lines, "utf-16"),
    "a.csv": delimited(","),
    "PAIRS.CSV": delimited(","),
    "a.tsv": delimited("\t"),
    "pandas.csv": lambda path, records: table(records).to_csv(path, index=False),
    "a.parquet": lambda path, records: table(records).to_parquet(path),
    "arrow.parquet": lambda path, records: Dataset.from_list(records).to_parquet(path),
    "a.arrow": lambda path, records: write_arrow(path, records),
    "saved": lambda path, records: Dataset.from_list(records).save_to_disk(path),
    "splits": lambda path, records: DatasetDict({"train": Dataset.from_list(records)}).save_to_disk(path),
    "shards": lambda path, records: write_shards(path, records, "-of-{}"),
    "shards of any number": lambda path, records: write_shards(path, records, ""),
    "folder": lambda path, records: [path.mkdir(), (path / "a.jsonl").write_text(lines(records))],
}


def write_arrow(path, records):
    content = pyarrow.Table.from_pylist(records)
    with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_stream(file, content.schema) as writer:
        writer.write_table(content)


def write_shards(path, records, total):
    path.mkdir()
    (path / "README.md").write_text("# data")
    for number, record in enumerate(records):
        name = f"train-{number:05}{total.format(f'{len(records):05}')}.jsonl"
        (path / name).write_text(lines([record]))


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_file_gives_the_same_rows(tmp_path, name):
    WRITERS[name](tmp_path / name, RECORDS)
    assert list(map(dict, read_records(tmp_path / name))) == RECORDS
    assert read_rows(str(tmp_path / name)) == read_rows(RECORDS)


@pytest.mark.parametrize("name", [name for name in WRITERS if "csv" not in name.lower() and "tsv" not in name])
def test_every_kind_of_file_holds_messages(tmp_path, name):
    WRITERS[name](tmp_path / name, MESSAGES)
    assert read_rows(tmp_path / name) == read_rows(MESSAGES)


def test_messages_printed_into_csv_are_messages(tmp_path):
    table(MESSAGES).to_csv(tmp_path / "lists.csv", index=False)
    table(MESSAGES).to_parquet(tmp_path / "a.parquet")
    pandas.read_parquet(tmp_path / "a.parquet").to_csv(tmp_path / "arrays.csv", index=False)
    assert "}\n {" in (tmp_path / "arrays.csv").read_text()
    assert read_rows(tmp_path / "lists.csv") == read_rows(tmp_path / "arrays.csv") == read_rows(MESSAGES)


PACK: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".ZST": lambda data: zstd(data),
}


def zstd(data):
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize("name", ["a.jsonl", "a.CSV", "a.parquet"])
@pytest.mark.parametrize("suffix", PACK)
def test_packed_files(tmp_path, name, suffix):
    WRITERS["PAIRS.CSV" if name == "a.CSV" else name](tmp_path / name, RECORDS)
    packed = tmp_path / f"{name}{suffix}"
    packed.write_bytes(PACK[suffix]((tmp_path / name).read_bytes()))
    assert read_rows(packed) == read_rows(RECORDS)
    packed.write_bytes(packed.read_bytes()[:40])
    refused(lambda: read_rows(packed), packed.name)


OBJECTS: dict[str, Callable[[Any], Any]] = {
    "Dataset": Dataset.from_list,
    "IterableDataset": lambda records: Dataset.from_list(records).to_iterable_dataset(),
    "DatasetDict": lambda records: DatasetDict({"train": Dataset.from_list(records)}),
    "list": list,
    "generator": iter,
    "DataFrame": table,
    "Table": pyarrow.Table.from_pylist,
}


@pytest.mark.parametrize("kind", OBJECTS)
def test_what_python_programs_hold(kind):
    make = OBJECTS[kind]
    assert read_rows(make(RECORDS)) == read_rows(RECORDS)
    assert read_rows(make(MESSAGES)) == read_rows(MESSAGES)
    assert read_prompts(make(MESSAGES)) == [(("user", "Q } {"),)]
    assert read_texts(make([{"text": "a"}, {"text": "b"}])) == ["a", "b"]
    refused(lambda: read_rows(make([*RECORDS, {"prompt": "Q", "chosen": "a", "rejected": None}])), "row 3", "rejected")


def test_arrays_of_pandas_are_messages(tmp_path):
    table(MESSAGES).to_parquet(tmp_path / "a.parquet")
    assert read_rows(pandas.read_parquet(tmp_path / "a.parquet")) == read_rows(MESSAGES)


def test_splits_are_named(tmp_path):
    splits = DatasetDict({"train_prefs": Dataset.from_list(RECORDS), "test_prefs": Dataset.from_list(RECORDS)})
    splits.save_to_disk(tmp_path / "saved")
    for source in (splits, tmp_path / "saved"):
        refused(partial(read_rows, source), "no split train", "train_prefs", "test_prefs")
        assert read_rows(source, "test_prefs") == read_rows(RECORDS)


def test_objects_that_are_no_records_are_refused():
    columns: Any = {"chosen": ["a"], "rejected": ["b"]}
    texts: Any = ["a", "b"]
    number: Any = 5
    refused(lambda: read_rows(columns), "chosen, rejected", "from_dict")
    refused(lambda: read_rows(texts), "the list, row 1", "str")
    refused(lambda: read_rows(number), "cannot be read from a int")


def test_folders_that_are_no_data_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    refused(lambda: read_rows(tmp_path / "empty"), "empty", "without data files")
    for name in ("train.jsonl", "test.jsonl"):
        (tmp_path / "empty" / name).write_text(lines(RECORDS))
    refused(lambda: read_rows(tmp_path / "empty"), "empty", "train.jsonl", "test.jsonl")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "dataset_info.json").write_text("{}")
    refused(lambda: read_rows(tmp_path / "broken"), "broken", "saved dataset")


@pytest.mark.parametrize("name", ["none.parquet", "none.CSV", "none.jsonl.xz", "none.xlsx", "/none/at/all", "./none"])
def test_a_missing_file_is_no_dataset_of_the_hub(name):
    refused(lambda: read_rows(name), name.removeprefix("./"), "no such file")


def test_a_split_that_the_hub_lacks_is_named(monkeypatch):
    def load(name, split):
        raise ValueError(f"Unknown split {split!r}. Should be one of ['train_prefs', 'test_prefs'].")

    monkeypatch.setattr("datasets.load_dataset", load)
    refused(lambda: read_rows("someone/pairs"), "someone/pairs", "no dataset with a split train", "train_prefs")


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.txt", "nothing"])
def test_an_empty_file_holds_no_rows(tmp_path, name):
    (tmp_path / name).write_text("")
    for read in (read_rows, read_prompts, read_texts):
        refused(partial(read, tmp_path / name), name, "holds no")


BAD: dict[str, tuple[Any, ...]] = {
    "book.xlsx": (b"PK", ".xlsx files cannot be read"),
    "latin.csv": ("chosen,rejected\né,b\n".encode("latin-1"), "UTF-8"),
    "wide.jsonl": ('{"text": "a", "score": 1}\n'.encode("utf-16-le"), "UTF-8"),
    "not.parquet": (b"chosen,rejected\na,b\n", "cannot be read"),
    "comma.csv": (b"chosen,rejected\nHello, world,no\n", "row 1", "more cells"),
    "twice.csv": (b"chosen,chosen\na,b\n", "one name"),
    "open.csv": (b'chosen,rejected\n"a,b\n', "cannot be read"),
    "semicolon.csv": (b"chosen;rejected\na;b\n", "row 1", "chosen;rejected"),
    "scalar.jsonl": (b'{"text": "a", "score": 1}\n"b"\n', "row 2", "str"),
    "null.json": (b"[null]", "row 1", "NoneType"),
    "columns.json": (b'{"chosen": {"0": "a"}, "rejected": {"0": "b"}}', "row 1", "chosen"),
    "surrogate.jsonl": (b'{"text": "\\ud83d", "score": 1}', "row 1", "half of a character"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_says_why(tmp_path, name):
    content, *named = BAD[name]
    (tmp_path / name).write_bytes(content)
    refused(lambda: read_rows(tmp_path / name), name, *named)


def test_kinds_that_share_columns(tmp_path):
    """A file of both kinds has empty cells, or nulls, in the columns of the other."""
    pair, text = {"prompt": "Q", "chosen": "a", "rejected": "b"}, {"prompt": "Q", "text": "c", "score": 1.5}
    expected = read_rows([pair, text])
    table([pair, text]).to_csv(tmp_path / "a.csv", index=False)
    table([pair, text]).to_parquet(tmp_path / "a.parquet")
    assert read_rows(tmp_path / "a.csv") == read_rows(tmp_path / "a.parquet") == expected


@pytest.mark.parametrize(("score", "number"), [("1.5", 1.5), (True, 1.0), ("False", 0.0), (" -2e1 ", -20.0)])
def test_scores(score, number):
    (row,) = read_rows([{"text": "a", "score": score}])
    assert isinstance(row, ScoredRow)
    assert row.score == number


@pytest.mark.parametrize("kind", ["numpy", "torch", "pandas", "arrow"])
def test_the_format_of_a_dataset_does_not_count(tmp_path, kind):
    records = [{"prompt": "Q", "text": "a", "score": 1.0}, {"prompt": "Q", "text": "b", "score": 0.0}]
    formatted = Dataset.from_list(records).with_format(kind)
    formatted.save_to_disk(tmp_path / "saved")
    assert read_rows(formatted) == read_rows(tmp_path / "saved") == read_rows(records)


@pytest.mark.parametrize("indent", [None, 1])
def test_an_object_with_one_name_twice_is_refused(tmp_path, indent):
    path = tmp_path / "pairs.jsonl"
    text = json.dumps({"prompt": "Q", "chosen": "a", "rejected": "b"}, indent=indent)
    path.write_text(text.replace("rejected", "chosen"))
    refused(lambda: read_rows(path), "pairs.jsonl", "one name", "chosen")


def test_a_pipe_is_read():
    """As `--data <(zcat pairs.jsonl.gz)` gives one."""
    reader, writer = os.pipe()
    with open(writer, "w") as file:
        file.write(json.dumps({"prompt": "Q", "chosen": "a", "rejected": "b"}))
    assert len(read_rows(f"/dev/fd/{reader}")) == 1
    os.close(reader)


def test_what_numpy_holds_is_what_python_holds():
    record = {"prompt": np.array("Q"), "system": np.float32("nan"), "text": np.str_("a"), "score": np.float32(0.5)}
    assert read_rows([record]) == read_rows([{"prompt": "Q", "text": "a", "score": 0.5}])

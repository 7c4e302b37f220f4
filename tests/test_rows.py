"""Guards the data readers: every format gives the same rows, every bad input is named in one line."""

import csv
import gzip
import json
from collections import Counter
from pathlib import Path

import pytest
from conftest import refused

from otterlm.training.data.conversations import Dialogue, parse_dialogue
from otterlm.training.data.rows import PairRow, ScoredRow, hold_out, read_rows

HH = [
    {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello!", "rejected": "\n\nHuman: Hi\n\nAssistant: No."},
    {
        "chosen": "\n\nHuman: A\n\nAssistant: B\n\nHuman: C\n\nAssistant: D\n\nD2",
        "rejected": '\n\nHuman: A\n\nAssistant: B\n\nHuman: C\n\nAssistant: E, "F"',
    },
]
TURNS = (("user", "A"), ("assistant", "B"), ("user", "C"))
ROWS = [
    PairRow(Dialogue((("user", "Hi"),), "Hello!"), Dialogue((("user", "Hi"),), "No.")),
    PairRow(Dialogue(TURNS, "D\n\nD2"), Dialogue(TURNS, 'E, "F"')),
]


def write_csv(path, records):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(records[0]))
        writer.writeheader()
        writer.writerows(records)


def write_lines(path, records):
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")


def write_array(path, records):
    path.write_text(json.dumps(records, indent=1), encoding="utf-8")


WRITERS = {".json": write_array, ".jsonl": write_lines, ".csv": write_csv}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", WRITERS)
def test_every_format_gives_the_same_rows(tmp_path: Path, kind, packed) -> None:
    path = tmp_path / f"data{kind}"
    WRITERS[kind](path, HH)
    if packed:
        path = tmp_path / f"data{kind}.gz"
        path.write_bytes(gzip.compress((tmp_path / f"data{kind}").read_bytes()))
    assert read_rows(path) == ROWS
    assert read_rows(str(path)) == ROWS


def rows_of(tmp_path, *records, kind=".jsonl"):
    path = tmp_path / f"rows{kind}"
    WRITERS[kind](path, list(records))
    return read_rows(path)


def test_chat_messages(tmp_path: Path) -> None:
    chat = [{"role": "system", "content": "S"}, {"role": "user", "content": "A"}]
    sides = {side: [*chat, {"role": "assistant", "content": side}] for side in ("chosen", "rejected")}
    prompt = (("system", "S"), ("user", "A"))
    assert rows_of(tmp_path, sides) == [PairRow(Dialogue(prompt, "chosen"), Dialogue(prompt, "rejected"))]
    apart = {side: turns[-1:] for side, turns in sides.items()} | {"prompt": chat}
    assert rows_of(tmp_path, apart) == rows_of(tmp_path, sides)


@pytest.mark.parametrize("kind", [".jsonl", ".csv"])
def test_prompt_column(tmp_path: Path, kind) -> None:
    rows = rows_of(tmp_path, {"prompt": "Q", "chosen": "yes", "rejected": "no"}, kind=kind)
    assert rows == [PairRow(Dialogue((("user", "Q"),), "yes"), Dialogue((("user", "Q"),), "no"))]


def test_hh_prompt_column(tmp_path: Path) -> None:
    record = {"prompt": "\n\nHuman: Hi\n\nAssistant:", "chosen": " Hello!", "rejected": " No."}
    row = rows_of(tmp_path, record)[0]
    assert row.chosen.prompt == (("user", "Hi"),)


def test_chat_prompt_with_text_responses(tmp_path: Path) -> None:
    record = {"prompt": [{"role": "user", "content": "Hi"}], "chosen": "Hello!", "rejected": "No."}
    assert rows_of(tmp_path, record)[0].chosen == Dialogue((("user", "Hi"),), "Hello!")


@pytest.mark.parametrize("kind", [".jsonl", ".csv"])
def test_text_and_score(tmp_path: Path, kind) -> None:
    rows = rows_of(tmp_path, {"text": "plain", "score": -1.5}, {"text": HH[0]["chosen"], "score": "2"}, kind=kind)
    assert rows == [ScoredRow(Dialogue(None, "plain"), -1.5), ScoredRow(Dialogue((("user", "Hi"),), "Hello!"), 2.0)]


def test_line_separators_inside_strings(tmp_path: Path) -> None:
    text = "one\u2028two\u2029three\x85four\x0b"
    assert rows_of(tmp_path, {"text": text, "score": 1}) == [ScoredRow(Dialogue(None, text), 1.0)]


def test_csv_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "excel.csv").write_bytes(b"\xef\xbb\xbftext,score\nfine,1\n")
    assert read_rows(tmp_path / "excel.csv") == [ScoredRow(Dialogue(None, "fine"), 1.0)]


def test_blank_lines_are_skipped_and_lines_counted(tmp_path: Path) -> None:
    path = tmp_path / "blank.jsonl"
    path.write_text('\n{"text": "a", "score": 1}\n\n\n{"text": }\n')
    refused(lambda: read_rows(path), "blank.jsonl, line 5")


GOOD = {"chosen": "a", "rejected": "b"}
BAD_ROWS = {
    "no rejected": ({"chosen": "a"}, "rejected"),
    "no chosen": ({"rejected": "a"}, "chosen"),
    "empty": ({"chosen": "", "rejected": "b"}, "chosen"),
    "null": ({"chosen": None, "rejected": "b"}, "chosen"),
    "number": ({"chosen": 5, "rejected": "b"}, "chosen"),
    "object": ({"chosen": {"a": 1}, "rejected": "b"}, "chosen"),
    "other columns": ({"question": "a"}, "question"),
    "no score": ({"text": "a"}, "score"),
    "word as score": ({"text": "a", "score": "good"}, "score"),
    "null score": ({"text": "a", "score": None}, "score"),
    "nan score": ({"text": "a", "score": float("nan")}, "score"),
    "infinite score": ({"text": "a", "score": "-inf"}, "score"),
    "huge score": ({"text": "a", "score": 10**400}, "score"),
    "a list": (["a", "b"], "list"),
    "a string": ("a", "str"),
    "message without role": ({"chosen": [{"content": "a"}], "rejected": "b"}, "role"),
    "messages that are strings": ({"chosen": ["a"], "rejected": "b"}, "role"),
    "ends with the user": ({"chosen": "\n\nHuman: a", "rejected": "b"}, "assistant"),
    "chat that ends with the user": ({"chosen": [{"role": "user", "content": "a"}], "rejected": "b"}, "assistant"),
}


@pytest.mark.parametrize("kind", BAD_ROWS)
def test_a_bad_row_is_named(tmp_path: Path, kind) -> None:
    record, named = BAD_ROWS[kind]
    refused(lambda: rows_of(tmp_path, GOOD, record), "rows.jsonl, row 2", named)


def test_a_bad_csv_row_is_named(tmp_path: Path) -> None:
    (tmp_path / "short.csv").write_text("chosen,rejected\na,b\nc\n")
    refused(lambda: read_rows(tmp_path / "short.csv"), "short.csv, row 2", "rejected")


def corrupt_middle(data):
    middle = len(data) // 2
    return data[:middle] + bytes(255 - byte for byte in data[middle : middle + 9]) + data[middle + 9 :]


LINES = gzip.compress("".join(json.dumps({"text": f"row {n * n}", "score": n}) + "\n" for n in range(99)).encode())
BAD_FILES = {
    "empty.jsonl": b"",
    "empty.csv": b"",
    "header.csv": b"chosen,rejected\n",
    "array.json": b"[]",
    "open.json": b'[{"chosen": "a", "rejected": "b"}',
    "deep.json": b"[" * 100_000,
    "digits.jsonl": b'{"text": "a", "score": ' + b"9" * 5000 + b"}",
    "binary.jsonl": b"\xff\xfe\x00",
    "truncated.jsonl.gz": LINES[: len(LINES) // 2],
    "corrupt.jsonl.gz": corrupt_middle(LINES),
    "not.csv.gz": b"chosen,rejected\na,b\n",
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_named(tmp_path: Path, name) -> None:
    (tmp_path / name).write_bytes(BAD_FILES[name])
    refused(lambda: read_rows(tmp_path / name), name)


def test_missing_files(tmp_path: Path) -> None:
    refused(lambda: read_rows(tmp_path / "nothing.jsonl"), "nothing.jsonl")
    refused(lambda: read_rows(tmp_path), str(tmp_path))
    refused(lambda: read_rows("someone/no-such-data"), "someone/no-such-data")


def test_invalid_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text(json.dumps(GOOD) + "\n" + json.dumps(GOOD)[:-1] + "\n")
    refused(lambda: read_rows(tmp_path / "bad.jsonl"), "bad.jsonl, line 2")


def test_dialogue_keeps_other_names_in_the_text() -> None:
    dialogue = parse_dialogue("\n\nHuman: Say:\nHuman: x\n\nAssistant: Robot: y")
    assert dialogue == Dialogue((("user", "Say:\nHuman: x"),), "Robot: y")


def scored(prompt, response):
    return ScoredRow(Dialogue(prompt, response), 0.0)


def test_hold_out_keeps_equal_prompts_together() -> None:
    rows = [scored((("user", f"question {n % 40}"),), f"answer {n}") for n in range(200)]
    held = hold_out(rows, 0.25, seed=3)
    sides = Counter((index % 40, index in held) for index in range(200))
    assert all(count == 5 for count in sides.values())
    assert len(held) == 50


def test_hold_out_says_that_all_rows_have_one_prompt() -> None:
    rows = [scored((("user", "Q"),), f"answer {n}") for n in range(24)]
    refused(lambda: hold_out(rows, 0.25, seed=0), "all 24 rows have one prompt", "--eval-data")
    assert hold_out(rows, 0.0, seed=0) == set()
    assert hold_out(rows[:1], 0.9, seed=0) == set()


def test_hold_out_leaves_rows_to_train_on() -> None:
    """A prompt with most of the rows is held out only where there is no other."""
    rows = [scored((("user", "Q" if n % 10 else f"Q {n}"),), f"answer {n}") for n in range(100)]
    for seed in range(5):
        assert hold_out(rows, 0.1, seed) == set(range(0, 100, 10))
    halves = [scored((("user", f"Q {n % 2}"),), f"answer {n}") for n in range(10)]
    assert len(hold_out(halves, 0.25, seed=0)) == 5


def test_hold_out_is_deterministic_and_seeded() -> None:
    rows = [scored(None, f"answer {n}") for n in range(100)]
    assert hold_out(rows, 0.1, seed=1) == hold_out(rows, 0.1, seed=1)
    assert hold_out(rows, 0.1, seed=1) != hold_out(rows, 0.1, seed=2)
    assert len(hold_out(rows, 0.1, seed=1)) == 10
    assert hold_out(rows, 0.0, seed=1) == set()

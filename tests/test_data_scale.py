"""Data of any size: rows and tokens lie on the disk, and what is read of them is what memory would hold."""

import importlib.util
import os
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_tokenizer import chat_tokenizer
from conftest import refused
from training_runs import TRAIN, new_objective
from word_tokenizer import TEMPLATE, WORDS, tokenizer

from otterlm.errors import OtterError
from otterlm.identity import of_data
from otterlm.signals.guard.config import GuardConfig
from otterlm.signals.reward import objective as reward_objective
from otterlm.signals.reward.objective import RewardObjective, last_states, start_from_probe
from otterlm.training import token_file
from otterlm.training.data import encoding
from otterlm.training.data.conversations import Dialogue
from otterlm.training.data.encoding import stored_tokens
from otterlm.training.data.labelled import LabelledRow, Span, read_labelled_rows
from otterlm.training.data.labelled_tokens import tokenize_labelled
from otterlm.training.data.labels import Marks
from otterlm.training.data.packing import Example, collate, length_buckets
from otterlm.training.data.rows import PairRow, Row, ScoredRow, hold_out, iterate_rows, read_rows
from otterlm.training.data.stored_examples import StoredExamples, by_row, in_memory, on_disk, select
from otterlm.training.data.stored_items import StoredItems
from otterlm.training.data.targets import TargetsOf, targets_of
from otterlm.training.data.tokens import Limits, tokenize
from otterlm.training.token_file import TokenFile

TURNS = (("system", "s"), ("user", "a b"), ("assistant", "c"), ("user", "d"))
ROWS: list[Row] = [
    PairRow(Dialogue(TURNS, "e f"), Dialogue(TURNS, "g"), "pairs.jsonl, row 1"),
    PairRow(Dialogue(TURNS, "e"), Dialogue((("user", "j"),), "e"), "p\udce9.jsonl, row 2"),
    PairRow(Dialogue(None, "a b"), Dialogue(None, "c"), "row 3"),
    PairRow(Dialogue((), "a b"), Dialogue((), "c"), "row 4"),
    ScoredRow(Dialogue(TURNS, "a\u2028\n\x00b"), 0.1 + 0.2, "row 5"),
    ScoredRow(Dialogue(None, ""), -1e300, "row 6"),
]
LIMITS = Limits(12, 8)


def pairs(count: int) -> list[Row]:
    """Returns pairs; two that follow each other share their prompt, and every tenth says the same twice."""
    made: list[Row] = []
    for number in range(count):
        prompt = (("user", f"{WORDS[10 + number // 2 % 10]} {WORDS[10 + number // 20 % 10]}"),)
        worse = "a b" if number % 10 == 9 else "c d"
        made.append(PairRow(Dialogue(prompt, "a b"), Dialogue(prompt, worse), f"row {number + 1}"))
    return made


def test_stored_rows_are_the_rows() -> None:
    stored = StoredItems(iter(ROWS * 99))
    assert len(stored) == len(ROWS) * 99
    assert list(stored) == ROWS * 99 == list(stored)
    assert [row.where for row in stored] == [row.where for row in ROWS] * 99
    assert stored.identity == of_data(ROWS * 99)
    first, second = iter(stored), iter(stored)
    assert [next(first) == next(second) for _ in range(300)] == [True] * 300
    assert [row.text.prompt for row in stored if isinstance(row, ScoredRow)][:2] == [TURNS, None]


def test_a_row_that_cannot_be_read_stops_the_reading() -> None:
    def rows() -> Iterator[Row]:
        yield ROWS[0]
        raise OtterError("row 2 is bad")

    refused(lambda: StoredItems(rows()), "row 2 is bad")


@pytest.mark.parametrize("template", [None, TEMPLATE])
@pytest.mark.parametrize("workers", [0, 2])
def test_stored_tokens_are_the_tokens(
    template: str | None, workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, words = pairs(200), tokenizer(template)
    expected = tokenize(rows, words, LIMITS)
    assert len(expected) == 180
    stored = stored_tokens(rows, words, LIMITS, workers)
    assert list(stored) == expected
    monkeypatch.setenv("OTTER_HOME", str(tmp_path))
    monkeypatch.setattr(encoding, "IN_MEMORY", 10)
    for data in (rows, StoredItems(rows)):
        mapped = stored_tokens(data, words, LIMITS, workers)
        assert list(mapped) == expected
        assert mapped.identity == stored.identity == of_data(expected)
    (path,) = (tmp_path / "tokens").iterdir()
    for other in (stored_tokens(rows, words, Limits(5, 2)), stored_tokens(rows[1:], words, LIMITS)):
        assert list(other) != expected
    assert len(list((tmp_path / "tokens").iterdir())) == 3
    path.write_bytes(path.read_bytes()[:-100])
    refused(lambda: stored_tokens(rows, words, LIMITS), path.name, "damaged", "delete it")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_row_that_cannot_be_encoded_is_named(workers: int) -> None:
    rows = [*pairs(150), PairRow(Dialogue((), "a"), Dialogue((), "b"), "pairs.jsonl, row 151")]
    refused(lambda: stored_tokens(rows, tokenizer(TEMPLATE), LIMITS, workers), "pairs.jsonl, row 151")
    same = [row for row in pairs(20) if isinstance(row, PairRow) and row.chosen == row.rejected]
    refused(lambda: stored_tokens(same, tokenizer(), LIMITS, workers), "no usable rows")


def test_stored_items_are_the_items(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("otterlm.training.data.stored_items.AT_ONCE", 999)
    rows = [LabelledRow(Dialogue(TURNS, f"a {n}"), Marks(("toxic",)), spans=(Span(0, 1),)) for n in range(50)]
    stored = StoredItems(iter(rows))
    assert list(stored) == rows == list(stored)
    assert (stored[-1], stored[3:9:2], len(stored)) == (rows[-1], rows[3:9:2], 50)
    assert stored.identity == of_data(rows)
    assert list(StoredItems(iter(()))) == []
    with pytest.raises(IndexError):
        stored[50]
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    refused(lambda: StoredItems(rows), "could not be written into", "TMPDIR")


def test_targets_of_examples_on_the_disk() -> None:
    records = [{"text": f"a {word}", "label": n % 2} for n, word in enumerate(WORDS[10:16])]
    labelled = tokenize_labelled(read_labelled_rows(records), tokenizer(), LIMITS)
    config = GuardConfig(("unsafe",))
    for examples in (labelled, labelled[3:]):  # with rows that are their places, and with others
        stored, expected = TargetsOf(StoredItems(examples), config), targets_of(examples, config)
        assert list(stored) == list(expected)
        assert len(stored) == len(expected)
        assert all(
            torch.equal(stored[row].labels.nan_to_num(9), expected[row].labels.nan_to_num(9)) for row in expected
        )


def test_examples_in_a_file_without_a_name() -> None:
    examples = [Example(n, (1, 2), ((3,) * (1 + n % 4),)) for n in range(600)]
    stored = on_disk(iter(examples))
    assert list(stored) == examples
    assert of_data(stored) == of_data(examples)


def test_old_tokens_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTTER_HOME", str(tmp_path))
    monkeypatch.setattr(encoding, "IN_MEMORY", 10)
    folder, files = tmp_path / "tokens", []

    def store(limit: int) -> Path:
        before = set(folder.glob("*.arrow"))
        examples = stored_tokens(pairs(100), tokenizer(), Limits(limit, 8))
        assert len(list(examples)) == 90
        (made,) = set(folder.glob("*.arrow")) - before
        return made

    for number, limit in enumerate((3, 4, 5)):
        files.append(store(limit))
        os.utime(files[-1], (number, number))
    stored_tokens(pairs(100), tokenizer(), Limits(3, 8))  # the oldest is used again
    size = sum(path.stat().st_size for path in files)
    monkeypatch.setenv("OTTER_TOKENS_GB", str(size * 1.2e-9))
    newest = store(6)
    assert {path for path in [*files, newest] if path.exists()} == {files[0], files[2], newest}
    monkeypatch.setenv("OTTER_TOKENS_GB", "0")
    alone = store(7)
    assert list(folder.glob("*.arrow")) == [alone]
    monkeypatch.setenv("OTTER_TOKENS_GB", "ten")
    refused(lambda: store(8), "OTTER_TOKENS_GB", "'ten'")


def resident() -> int:
    """Returns the bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="only Linux says so")
def test_a_recording_does_not_fill_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_file, "AT_ONCE", 1 << 20)
    examples = [Example(row, (), ((5,) * 32,)) for row in range(999, 249, -1)]  # of 24 kB each

    def numbers(group: Any) -> torch.Tensor:
        return torch.stack([torch.full((32, 192), float(example.row)) for example in group])

    # What any first use takes (imports, threads, the allocator's own) is no part of what a recording takes.
    few = TokenFile(tmp_path / "few.f32", examples[:16], 192, torch.float32, {"kind": "few"}, numbers, 8, "writing")
    few.read(collate(examples[:8]))
    before = resident()
    made = (tmp_path / "n.f32", examples, 192, torch.float32, {"kind": "n"}, numbers, 8, "writing")
    stored = TokenFile(*made)
    most = resident()
    for group in length_buckets(examples, 8, seed=0):
        read = stored.read(collate(group))
        assert read[:, 0, 0].tolist() == [example.row for example in group]
        most = max(most, resident())
    assert (tmp_path / "n.f32").stat().st_size == 750 * 32 * 192 * 4
    assert most - before < 9 << 20


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="only Linux says so")
def test_items_that_are_read_do_not_fill_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("otterlm.training.data.stored_items.AT_ONCE", 1 << 20)
    stored = StoredItems(bytes([number % 256]) * 24_000 for number in range(1000))
    before, most = resident(), 0
    for number, item in enumerate(stored):
        assert item[0] == number % 256
        most = max(most, resident())
    assert most - before < 9 << 20  # of 24 MB


def test_parts_of_stored_examples() -> None:
    examples = [
        Example(3 * n, tuple(range(n % 7)), ((5,) * (1 + n % 5), (6,)), (), (n % 3, n % 2), n % 2) for n in range(600)
    ]
    scored = [Example(n, (1,), ((2, 3),), (0.1 * n,)) for n in range(9)]
    stored = in_memory(examples)
    assert list(stored) == examples
    assert list(in_memory(scored)) == scored
    assert stored[-1] == examples[-1]
    assert list(stored[5:300:7]) == examples[5:300:7]
    held = set(range(0, 1800, 9))
    rest, part = select(stored, lambda row: row not in held), select(stored, held.__contains__)
    assert [list(rest), list(part)] == [
        select(examples, lambda row: row not in held),
        select(examples, held.__contains__),
    ]
    assert list(by_row(part, rest)) == examples == by_row(examples[300:], examples[:300])
    assert of_data(part) == of_data(list(part))
    for seed in (None, 1):
        assert list(length_buckets(rest, 8, seed)) == list(length_buckets(list(rest), 8, seed))


def test_what_is_held_out_of_stored_rows() -> None:
    rows = pairs(300)
    assert hold_out(StoredItems(rows), 0.2, 1) == hold_out(rows, 0.2, 1)
    assert len(hold_out(rows, 0.2, 1)) == 60


def test_a_prompt_is_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def encode(prompt: Any, *_: Any) -> list[int]:
        calls.append(prompt)
        return [5]

    monkeypatch.setattr("otterlm.training.data.tokens.prompt_tokens", encode)
    tokenize(pairs(20), tokenizer(TEMPLATE), LIMITS)
    assert len(calls) == 10


def peak(count: int, folder: Path) -> float:
    """Returns the most memory that Python held while so many pairs were read and tokenized, in bytes."""
    records = (
        {"prompt": f"the dog {n} " * 9, "chosen": f"is nice {n} " * 9, "rejected": f"helps {n} " * 9}
        for n in range(count)
    )
    words = chat_tokenizer()
    tracemalloc.start()
    try:
        rows = StoredItems(iterate_rows(records))
        examples = stored_tokens(rows, words, Limits(256, 256))
        held = hold_out(rows, 0.1, 0)
        rest = select(examples, lambda row: row not in held)
        of_data(rest)
        next(length_buckets(rest, 8, seed=0))
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pair of these takes 25 kB as rows and tuples of tokens, and may take 200 bytes of an index."""
    monkeypatch.setenv("OTTER_HOME", str(tmp_path))
    monkeypatch.setattr(encoding, "IN_MEMORY", 10)
    peak(20, tmp_path)  # what is made once
    small, large = peak(600, tmp_path), peak(1800, tmp_path)
    assert large - small < 1200 * 200 + 100_000


def test_the_pairs_of_a_probe_stay_on_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reward_objective, "PROBE_PAIRS", 16)
    read: list[Any] = []

    def states(objective: RewardObjective, examples: Any, batch_size: int) -> tuple[torch.Tensor, torch.Tensor]:
        read.append(examples)
        return last_states(objective, examples, batch_size)

    monkeypatch.setattr(reward_objective, "last_states", states)
    heads = []
    for examples in (TRAIN, in_memory(TRAIN)):
        objective = new_objective()
        start_from_probe(objective, examples)
        heads.append(objective.model.adapter().head.prefix.weight)
    listed, stored = read
    assert isinstance(stored, StoredExamples)
    assert list(stored) == listed
    assert len(listed) == 16 < len(TRAIN)
    assert torch.equal(*heads)


def test_read_rows_is_a_list_of_them() -> None:
    records = [{"prompt": "a", "chosen": "b", "rejected": "c"}]
    assert read_rows(records) == list(iterate_rows(records))
    refused(lambda: list(iterate_rows([])), "holds no rows")


def test_the_benchmark_measures_up_to_the_first_steps(tmp_path: Path) -> None:
    path = Path(__file__).parents[1] / "benchmarks" / "data_scale.py"
    spec = importlib.util.spec_from_file_location("data_scale", path)
    assert spec is not None
    assert spec.loader is not None
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    result = benchmark.measured(tmp_path, pairs=48, tokens=40, steps=2, workers=0, probe=True)
    assert result["peak_rss_mb"] >= result["start_rss_mb"] > 0
    assert result["seconds_before_first_step"] > 0
    assert result["seconds_per_thousand_pairs"] == pytest.approx(
        1000 * result["seconds_before_first_step"] / 48, abs=0.2
    )
    assert not (tmp_path / "out" / "adapter_model.safetensors").exists()  # it stopped

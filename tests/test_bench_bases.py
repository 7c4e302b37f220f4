"""The table of bases: rows of two tiny bases, made once each, and what is drawn of them."""

import gzip
import importlib.util
import json
import sys
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from conftest import close, refused, tiny_base, tiny_config
from test_bench_guard import records, write
from training_runs import preferences
from word_tokenizer import TEMPLATE, WORDS, tokenizer

from otterlm.model import OtterModel
from otterlm.training.config import TrainingConfig

FOLDER = Path(__file__).parents[1] / "benchmarks"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def bases(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Imports the script as Python would run it."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return script("bases")


def test_states_are_read_with_the_recording(bases, tmp_path) -> None:
    base = tiny_base()
    model = OtterModel(base, tiny_config(layers=(2, 3)))
    examples = preferences(21)
    states = sys.modules["bases_reading"].read_once(model, examples, tmp_path)[1]
    for number in (0, 7, 20):
        example = examples[number]
        for side, branch in enumerate(example.branches):
            text = torch.tensor([[*example.prefix, *branch]])
            hidden = base.model(text, output_hidden_states=True).hidden_states
            for block in range(3):  # the last of these is normed
                close(states[side, number, block], hidden[block + 1][0, -1])
    stored = (tmp_path / "states.safetensors").stat().st_mtime_ns
    same = sys.modules["bases_reading"].read_once(model, examples, tmp_path)[1]
    assert torch.equal(states, same)
    assert (tmp_path / "states.safetensors").stat().st_mtime_ns == stored


def solutions(data: Path) -> None:
    """Writes solutions of 12 questions, of which those that say a are right."""
    (data / "gsm8k_solutions").mkdir(parents=True)
    answers = {
        str(number): {"solution": f"{word} b c d", "is_correct": word == "a"} for number, word in enumerate("aaij")
    }
    with gzip.open(data / "gsm8k_solutions" / "example_model_solutions.jsonl.gz", "wt") as file:
        for number in range(30):
            file.write(json.dumps({"question": f"{WORDS[10 + number % 8]} e", **answers}) + "\n")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_live_base_ranks_as_a_recorded_one(bases, pairs, tmp_path, dtype, monkeypatch) -> None:
    """And nothing is recorded. On a GPU training computes in bfloat16, and so it does here for a while."""
    folder = tmp_path / "base"
    tiny_base(vocab_size=len(WORDS), intermediate_size=160).save_pretrained(folder)
    tokenizer(TEMPLATE).save_pretrained(folder)
    AcceleratorState._reset_state()  # accelerate has one precision a process
    of_gpu = partial(TrainingConfig, mixed_precision="bf16" if dtype == "bfloat16" else "auto")
    monkeypatch.setattr(sys.modules["bases_preference"], "TrainingConfig", of_gpu)
    fixed = ["preference", "--base", str(folder), "--hidden-size", "8", "--data", f"d={pairs}", "--rank", "2"]
    fixed += ["--dtype", dtype]
    for name, more in (("live", ["--live", "--device", "cpu"]), ("recorded", [])):
        bases.main([*fixed, *more, "--out", str(tmp_path / name)])
    rows = [json.loads(path.read_text()) for path in (tmp_path / "live").glob("*/rows/*.json")]
    assert {row["method"] for row in rows} == {"otter", "probe", "lora"}
    assert all(row["accuracy"] == 1 for row in rows)
    assert not list((tmp_path / "live").rglob("*recording*"))
    for path in (tmp_path / "live").glob("*/rows/*probe*.json"):
        other = tmp_path / "recorded" / path.relative_to(tmp_path / "live")
        assert json.loads(other.read_text())["right"] == json.loads(path.read_text())["right"]
        assert "live" not in json.loads(other.read_text())["identity"]
    AcceleratorState._reset_state()


def marked(count: int, seed: int) -> list[dict[str, Any]]:
    """Returns texts of which each j is an offensive passage."""
    rows = records(count, seed)
    for row in rows:
        row["spans"] = [[at, at + 1] for at, letter in enumerate(row["text"]) if letter == "j"]
    return rows


def test_rows_and_table(bases, pairs, tmp_path, capsys, monkeypatch) -> None:
    out = tmp_path / "out"
    train, test = (write(tmp_path / f"{seed}.jsonl", marked(60, seed)) for seed in (0, 1))
    for depth in (2, 3):
        folder = tmp_path / f"base-{depth}"
        tiny_base(vocab_size=len(WORDS), num_hidden_layers=depth, intermediate_size=160).save_pretrained(folder)
        tokenizer(TEMPLATE).save_pretrained(folder)
        fixed = ["--base", str(folder), "--out", str(out), "--layers", "1", "--hidden-size", "8"]
        data = [f"harmless={pairs}"]
        bases.main(["preference", *fixed, "--data", *data, "--epochs", "1", "--rank", "2", "--seeds", "0", "1"])
    bases.main(["guard", *fixed, "--train", str(train), "--test", str(test)])
    bases.main(["cost", *fixed, "--prompt", "4", "--new", "4", "--rounds", "3"])
    solutions(tmp_path / "data")
    of = ["--base", str(folder), "--layers", "1", "--data", str(tmp_path / "data"), "--live", "--device", "cpu"]
    script("reasoning").main([*of, "--out", str(out / "b"), "--epochs", "1", "--seeds", "0", "1", "--hidden-size", "8"])
    rows = sorted(path.name for path in out.glob("*/rows/*.json"))
    assert len(rows) == 2 * 6 + 5
    (row,) = [json.loads(path.read_text()) for path in out.glob("*/rows/passages.json")]
    assert [(each["method"] == "Otter", each["listed"]) for each in row["rows"]] == [
        (True, False),
        (True, True),
        (False, False),
        (False, True),
    ]
    assert [each["texts"] for each in row["rows"]] == [60] * 4
    # A word decides alone. The list and the probe know it; the guard has hardly learned.
    assert all(each["span_f1"] > 0.95 for each in row["rows"][1:])
    for guard, probe in zip(row["rows"][:2], row["rows"][2:], strict=True):
        assert probe["lead"] == pytest.approx(guard["span_f1"] - probe["span_f1"], abs=1e-6)
        low, high = probe["lead_ci95"]
        assert low <= probe["lead"] <= high
    assert row["rows"][2]["lead"] < 0
    (row,) = [json.loads(path.read_text()) for path in out.glob("*base-3/rows/preference-harmless-otter-1.json")]
    assert len(row["right"]) == 8
    assert row["accuracy"] == sum(row["right"]) / 8
    capsys.readouterr()
    bases.main(["table", "--out", str(out)])
    printed = capsys.readouterr().out
    assert printed.splitlines()[2].count("|") == 8
    for heading in (
        "Otter minus LoRA reward model",
        "guard: best probe",
        "guard: probe, with the list",
        "guard: Otter minus probe, with the list",
        "| linear probe, last block |",
        "inserted",
        "25%",
    ):
        assert heading in printed
    assert (out / "bases.svg").stat().st_size > 1000
    # A row that is there is not made again; one of other settings is refused.
    monkeypatch.setattr(bases.preference.__globals__["Pairs"], "judge", None)
    bases.main(["preference", *fixed, "--data", *data, "--epochs", "1", "--rank", "2"])
    assert capsys.readouterr().out.count("is there") == 3
    refused(lambda: bases.main(["preference", *fixed, "--data", *data, "--epochs", "2"]), "epochs (1 there, 2 now)")
    monkeypatch.setattr("otterlm.training.learning_rate.SIZE", 1e-3)  # another rate is chosen
    refused(lambda: bases.main(["preference", *fixed, "--data", *data, "--epochs", "1"]), "learning_rate (none there")
    write(test, [row | {"spans": []} for row in marked(60, 1)])
    refused(lambda: bases.main(["guard", *fixed, "--train", str(train), "--test", str(test)]), "spans")
    refused(lambda: bases.main(["table", "--out", str(tmp_path / "none")]), "holds no rows")


def test_differences_are_of_the_same_pairs(monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    table = script("bases_table")
    fixed = {"task": "preference", "base": "b", "data": "d", "parameters": 7}
    right = {("otter", 0): [1, 1, 0, 1], ("probe", 0): [1, 0, 0, 0], ("otter", 1): [1, 1, 1, 1]}
    rows = [{**fixed, "method": method, "seed": seed, "right": each} for (method, seed), each in right.items()]
    (difference,) = table.differences(rows, "d", "probe")
    assert difference["points"] == 50  # of seed 0, which both have
    low, high = difference["points_ci95"]
    assert low < 50 < high
    assert table.differences(rows, "d", "lora") == []

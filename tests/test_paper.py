"""The recipes at the paper's scale, end to end with a tiny base and records as the hub has them."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from conftest import refused, tiny_base
from transformers import BertConfig, BertForSequenceClassification
from word_tokenizer import TEMPLATE, WORDS, tokenizer

FOLDER = Path(__file__).parents[1] / "recipes" / "paper"
LETTERS = WORDS[10:]
SMALL = ["--dtype", "float32", "--hidden-size", "8", "--heads", "2", "--intermediate-size", "12", "--batch", "8"]


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch):
    """Imports a script of the folder."""
    monkeypatch.syspath_prepend(str(FOLDER))

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(f"paper_{name}", FOLDER / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Makes a tiny base, deep enough for blocks in its upper two thirds."""
    folder = tmp_path_factory.mktemp("base")
    tiny_base(vocab_size=len(WORDS), num_hidden_layers=3).save_pretrained(folder)
    tokenizer(TEMPLATE).save_pretrained(folder)
    return folder


def write(path: Path, records: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def word(number: int) -> str:
    return LETTERS[number % len(LETTERS)]


def pairs(count: int, start: int = 0) -> list[dict[str, Any]]:
    """Returns records of Anthropic/hh-rlhf."""
    turns = [f"\n\nHuman: {word(n)} {word(n // 10)}\n\nAssistant: " for n in range(start, start + count)]
    return [{"chosen": f"{turn}a b", "rejected": f"{turn}i j"} for turn in turns]


def again(module: ModuleType, arguments: list[str], out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second call finds all steps done; one with other settings is refused."""
    table = (out / "table.md").read_text()
    (out / "table.md").unlink()
    monkeypatch.setattr(module, "load", None)
    module.main(arguments)
    assert (out / "table.md").read_text() == table
    refused(lambda: module.main([*arguments, "--seed", "7"]), "data.json", "seed (0 there, 7 now)")


def test_alignment(recipe, base, tmp_path, capsys, monkeypatch) -> None:
    module, out = recipe("align"), tmp_path / "out"
    arguments = ["--base", str(base), "--out", str(out), *SMALL, "--rank", "2", "--vocabulary-rank", "4"]
    arguments += ["--pairs", write(tmp_path / "train.jsonl", pairs(60))]
    arguments += ["--questions", write(tmp_path / "test.jsonl", pairs(4, 80))]
    arguments += ["--train", "24", "--prompts", "3", "--value-prompts", "6", "--new-tokens", "4"]
    with pytest.raises(SystemExit):
        module.main([*arguments, "--plan"])
    assert not out.exists()
    plan = capsys.readouterr().out
    assert plan.count("GiB") == 2 * 6
    module.main([*arguments, "--weight", "1"])
    rows = json.loads((out / "steps" / "compare.json").read_text())["result"]
    names = {row["method"] for row in rows}
    assert names >= {"base", "Otter, guidance, weight 1", "ARGS, weight 1", "CARDS", "CARDS, Otter's reward"}
    learned, judged = ((out / name).read_text().splitlines() for name in ("methods.jsonl", "judge.jsonl"))
    assert len(learned) == len(judged) == 24
    assert not set(learned) & set(judged)
    assert "| ARGS, weight 1 |" in (out / "table.md").read_text()
    again(module, [*arguments, "--weight", "1"], out, monkeypatch)
    refused(
        lambda: module.main([*arguments, "--out", str(tmp_path / "other"), "--train", "31"]), "60 pairs", "takes 62"
    )


def toxicity(count: int) -> list[dict[str, Any]]:
    """Returns records of allenai/real-toxicity-prompts, some without a score."""
    records = []
    for n in range(count):
        score = [0.9, 0.1, 0.4, None][n % 4]
        prompt = {"text": f"{word(n)} {word(n // 10)} {word(n // 4)}", "toxicity": score, "threat": 0.1}
        records.append({"prompt": prompt, "continuation": {"text": f" {word(n + 1)} a", "toxicity": 0.1}})
    return records


def test_detoxification(recipe, base, tmp_path, monkeypatch) -> None:
    module, out = recipe("detoxify"), tmp_path / "out"
    judge = tmp_path / "judge"
    torch.manual_seed(0)
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertForSequenceClassification(BertConfig(vocab_size=len(WORDS), **small)).save_pretrained(judge)
    tokenizer().save_pretrained(judge)
    other = tmp_path / "fluency"
    tiny_base(vocab_size=len(WORDS), seed=5).save_pretrained(other)
    tokenizer().save_pretrained(other)
    arguments = ["--base", str(base), "--out", str(out), *SMALL, "--rank", "2", "--contrast-rank", "4"]
    arguments += ["--data", write(tmp_path / "prompts.jsonl", toxicity(80)), "--judge", f"hf:{judge}"]
    arguments += ["--fluency", str(other), "--train", "10", "--unlabelled", "6", "--prompts", "2"]
    module.main(arguments)
    rows = json.loads((out / "steps" / "compare.json").read_text())["result"]
    assert [row["method"] for row in rows] == ["base", "base", "Otter", "Otter", "DExperts", "DExperts"]
    assert all(0 <= row["max_toxicity"] <= 1 and row["perplexity"] > 1 for row in rows)
    parts = [set((out / f"{name}.jsonl").read_text().splitlines()) for name in ("clean", "toxic", "prompts-clean")]
    assert [len(part) for part in parts] == [10, 10, 2]
    again(module, arguments, out, monkeypatch)
    wrong = write(tmp_path / "wrong.jsonl", pairs(3))
    refused(lambda: module.main([*arguments, "--out", str(tmp_path / "o"), "--data", wrong]), "RealToxicityPrompts")


def test_acceleration(recipe, base, tmp_path, monkeypatch) -> None:
    module, out = recipe("speed_up"), tmp_path / "out"
    chats = [{"prompt": f"{word(n)} {word(n // 10)}", "messages": []} for n in range(40)]
    questions = [{"category": "writing", "prompt": [f"{word(n)} a", "b"], "prompt_id": n} for n in range(3)]
    arguments = ["--base", str(base), "--out", str(out), *SMALL, "--train", "20", "--epochs", "1"]
    arguments += ["--prompts", write(tmp_path / "chats.jsonl", chats), "--limit", "2", "--drafts", "2"]
    arguments += ["--questions", write(tmp_path / "questions.jsonl", questions)]
    arguments += ["--new-tokens", "8", "--answer-tokens", "8"]
    arguments += ["--draft-width", "8", "--draft-rank", "8", "--draft-vocabulary", "12"]
    module.main(arguments)
    rows = {row["method"]: row for row in json.loads((out / "steps" / "compare.json").read_text())["result"]}
    assert list(rows) == [
        "base",
        *(f"Otter, {n}" for n in ("drafts that pay", "2 drafts", "2 drafts without lookup")),
        *(f"Medusa, {n} drafts" for n in (4, 2)),
        "prompt lookup",
    ]
    assert all(row["identical"] == row["prompts"] == 2 for row in rows.values())
    again(module, arguments, out, monkeypatch)


def test_a_step_that_does_not_fit_is_refused(recipe, monkeypatch) -> None:
    recipe("align")
    paper = __import__("paper")
    arguments = paper.parser("", "b").parse_args(["--out", "o"])
    step = paper.Step("otter", "", paper.Cost(memory=100e9), lambda: None)
    refused(lambda: paper.show_plan(arguments, [step]), "otter takes about 93 GiB and a a100-80gb has 75", "--batch")


def test_sizes_of_the_paper(recipe, tmp_path) -> None:
    """Llama-2-7B in bf16 has 13.5 GB of weights, and half a megabyte of cache a token."""
    from otterlm.bench.shapes import SHAPES

    recipe("align")
    paper = __import__("paper")
    SHAPES["llama-2-7b"].save_pretrained(tmp_path)
    arguments = paper.parser("", str(tmp_path)).parse_args(["--out", "o"])
    from otterlm.signals.reward.config import RewardConfig

    sizes = paper.Sizes.of(str(tmp_path), paper.adapter_shape(arguments, RewardConfig()), torch.bfloat16)
    assert sizes.weights == pytest.approx(13.48e9, rel=0.01)
    assert sizes.kv == 2**19
    assert sizes.fit_lora(1, 1, 16).memory > sizes.weights
    # A step of decoding reads the weights once.
    once = sizes.decode(8, 1, 8, 0)
    assert once.read == pytest.approx(sizes.weights + 8 * sizes.kv)

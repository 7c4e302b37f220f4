"""The table of the second stage's parts: rows of a tiny base, each made once."""

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from conftest import refused, tiny_base, tiny_otter
from test_bench_bases import FOLDER, script
from word_tokenizer import TEMPLATE, WORDS, tokenizer

from otterlm.decoding import score_sequences
from otterlm.model import OtterModel

FEW = ("regression", "stage off", "rollouts, value", "rollouts, rating", "rank 16", "no candidates", "half the prompts")
SAME_STREAM = {"regression", "rollouts, value", "rollouts, rating", "rank 16"}


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Imports the script as Python would run it."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return script("steering_parts")


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    """Measures with a teacher that rates at random, after pairs of 60 dialogues."""
    base = tmp_path / "base"
    teacher = tiny_otter(tiny_base(vocab_size=len(WORDS), intermediate_size=160))
    teacher.base_model.save_pretrained(base)
    tokenizer(TEMPLATE).save_pretrained(base)
    for parameter in teacher.adapter().parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(parameter.numel()))
    teacher.save_pretrained(tmp_path / "teacher")
    rows = [
        {"prompt": f"{first} {second}", "chosen": f"a {second}", "rejected": f"b {second}"}
        for first in WORDS[10:20]
        for second in WORDS[10:16]
    ]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps({"prompt": r["prompt"]}) + "\n" for r in rows[:6]))
    sizes = {"hidden-size": 8, "layers": 1, "prompts": 30, "test": 6, "guided": 4, "new-tokens": 6}
    files = {name: tmp_path / f"{name}.jsonl" for name in ("data", "questions")}
    options = {
        "base": base,
        "teacher": tmp_path / "teacher",
        "first": tmp_path / "teacher",
        "out": tmp_path / "out",
        **files,
        **sizes,
    }
    return [f"--{name}={value}" for name, value in options.items()]


def test_rows_and_table(parts: Any, command: list[str], tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    parts.main([*command, "--variants", *FEW])
    assert len(list((tmp_path / "out" / "rows").glob("*.jsonl"))) == len(FEW)
    table = capsys.readouterr().out.splitlines()[-len(FEW) - 3 :]
    assert table[0].count("|") == table[1].count("|") == table[-1].count("|") == 11
    assert [line.split(" | ")[0] for line in table[3:]] == [f"| {name}" for name in parts.VARIANTS if name in FEW]
    rows = {name: sys.modules["steering_parts_table"].read_row(tmp_path / "out", name) for name in FEW}
    # A head of another rank reads the same stream, and the other parts change it.
    same = {name for name in FEW if rows[name]["correlation_50"] == rows["regression"]["correlation_50"]}
    assert same == SAME_STREAM
    assert len({rows[name]["unit"] for name in SAME_STREAM}) == len(SAME_STREAM)  # but each has a head of its own
    assert all(row["unit"] > 0 and len(row["gains"]) == 4 for row in rows.values())
    monkeypatch.setattr(parts.Fitter, "fitted", None)  # nothing is trained again
    parts.main([*command, "--variants", *FEW])
    refused(lambda: parts.main([*command, "--seed", "1", "--variants", *FEW]), "seed (0 there, 1 now)")


def test_no_question_is_learned(parts: Any, command: list[str], tmp_path: Path) -> None:
    """Neither of the base's responses here nor of those sampled elsewhere."""
    fitter = parts.Fitter(parts.parser().parse_args(command))
    questions = {tuple(question) for question in fitter.encoded}
    prefixes = [example.prefix for example in fitter.rated]
    assert len(set(prefixes)) == len(prefixes) == 36
    assert len(questions) == 4
    assert not questions & set(prefixes)
    rows = [{"tokens": list(each), "responses": [[11, 12], [13]]} for each in (*questions, *prefixes)]
    (tmp_path / "rollouts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    elsewhere = [*command, f"--rollouts={tmp_path / 'rollouts.jsonl'}"]
    rated = parts.Fitter(parts.parser().parse_args(elsewhere)).rated
    assert [example.prefix for example in rated] == prefixes
    assert all(len(example.scores) == 2 for example in rated)
    assert rated == parts.Fitter(parts.parser().parse_args(elsewhere)).rated  # as they were stored
    many = parts.Fitter(parts.parser().parse_args([*elsewhere, "--test=7"]))
    refused(lambda: many.rated, "has 36 prompts that can be used: 37 are asked for")


def test_rollouts_go_on_from_the_likeliest_tokens(parts: Any, command: list[str], tmp_path: Path) -> None:
    fitter = parts.Fitter(parts.parser().parse_args(command))
    rollouts = sys.modules["steering_parts_rollouts"]
    base, examples, path = fitter.load(), fitter.rated[:5], tmp_path / "candidates.jsonl"
    rolled = rollouts.roll_out(base, examples, k=3, seed=0, pad=0, path=path)
    assert rolled == rollouts.roll_out(base, examples, k=3, seed=0, pad=0, path=path)  # as they were stored
    assert {each.text.row for each in rolled} == set(range(5))
    assert len(rolled) == sum(min(rollouts.POSITIONS, sum(map(len, each.branches))) for each in examples)
    for each in rolled:
        tokens = each.text.prefix
        example = examples[each.text.row]
        assert any((example.prefix + branch)[: len(tokens)] == tokens for branch in example.branches)
        with torch.no_grad():
            log_probs, likely = base(torch.tensor([tokens])).logits[0, -1].log_softmax(dim=-1).topk(3)
        assert [branch[0] for branch in each.text.branches] == likely.tolist()
        torch.testing.assert_close(torch.tensor(each.log_probs), log_probs)  # a padded batch rounds otherwise
        assert all(len(branch) == 1 or len(branch) <= rollouts.TOKENS + 1 for branch in each.text.branches)


def test_steps_of_rollouts_are_what_stands_at_their_ends(parts: Any, command: list[str], tmp_path: Path) -> None:
    fitter = parts.Fitter(parts.parser().parse_args(command))
    rollouts = sys.modules["steering_parts_rollouts"]
    base = fitter.load()
    model = OtterModel.from_pretrained(base, fitter.arguments.teacher).eval()
    rolled = rollouts.roll_out(base, fitter.rated[:3], k=2, seed=0, pad=0, path=tmp_path / "candidates.jsonl")
    steps = rollouts.rollout_steps(model, rolled, None, batch_size=2)
    for number, each in enumerate(rolled):
        texts = [torch.tensor([[*each.text.prefix, *branch]]) for branch in each.text.branches]
        ends = [float(score_sequences(model, text, torch.ones_like(text))[0, -1]) for text in texts]
        assert float(steps.gains[number, 0] - steps.gains[number, 1]) == pytest.approx(ends[0] - ends[1], abs=1e-5)
    rated = rollouts.rollout_steps(model, rolled, fitter._teacher, batch_size=2)
    torch.testing.assert_close(rated.gains, steps.gains)  # the teacher is the same model here

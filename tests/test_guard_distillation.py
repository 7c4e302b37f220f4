"""A scorer's judgement goes into a guard: of whole responses, and of prefixes by rollouts."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SHAPE, refused, tiny_base
from word_tokenizer import TEMPLATE, WORDS, tokenizer

from otterlm.adapter_files import read_config
from otterlm.signals.guard.config import GuardConfig
from otterlm.training.data.packing import Example
from otterlm.training.data.targets import Targets
from otterlm.training.recipes.guard_distillation import GuardDistillationRecipe, _without_ends
from otterlm.training.teachers.responses import Sampling
from otterlm.training.teachers.rollouts import PrefixJudge, Rollouts
from otterlm.training.teachers.scorers import load_scorer

HOW = ("--scorer", "regex:[ab]", "--offence-from", 1, "--label", "letters", "--per-prompt", 4, "--max-new-tokens", 6)


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("".join(f"{first} {second}\n" for first in WORDS[10:16] for second in WORDS[12:18]))
    return path


def test_lengths_of_prefixes() -> None:
    assert Rollouts(2, 3).lengths(8) == [2, 4, 6]
    assert Rollouts(2, 4).lengths(3) == [1, 2]
    assert Rollouts(2, 4).lengths(1) == []
    refused(lambda: Rollouts(2, rollout_share=0.0), "rollout_share must be above 0")


def test_prefixes_are_judged_by_whole_responses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, seen = tiny_base(vocab_size=len(WORDS)), []

    def rate(prompts: Any, texts: Any) -> list[float]:
        seen.extend(texts)
        return [float(text.startswith("a")) for text in texts]

    scorer = load_scorer("regex:a")
    monkeypatch.setattr(type(scorer), "__call__", lambda _, prompts, texts: rate(prompts, texts))
    rollouts, sampling = Rollouts(3, 1), Sampling(max_new_tokens=5)
    examples = [Example(0, (8, 7, 12), ((10, 11), (12, 13)), (1.0, 0.0)), Example(1, (8,), ((14,),), (0.0,))]
    turns = [(("user", "c"),), (("user", "d"),)]
    judge = PrefixJudge(base, tokenizer(TEMPLATE), scorer, 0.5, sampling, rollouts)
    assert judge.judge(turns, examples, tmp_path / "shares.jsonl") == [[[1.0], [0.0]], [[]]]
    assert len(seen) == 6
    assert all(text.startswith("a ") or text == "a" for text in seen[:3])  # the prefix stands before its rollouts
    assert judge.judge(turns, examples, tmp_path / "shares.jsonl") == [[[1.0], [0.0]], [[]]]
    assert len(seen) == 6  # they are in the file
    other = PrefixJudge(base, tokenizer(TEMPLATE), scorer, 0.7, sampling, rollouts)
    refused(lambda: other.judge(turns, examples, tmp_path / "shares.jsonl"), "threshold")


@pytest.mark.parametrize("rollouts", [0, 2])
def test_distill_guard(answer, base, prompts, tmp_path, rollouts) -> None:
    command = ("distill", "guard", "--base", base, "--prompts", prompts, *HOW, *SHAPE, "--out", tmp_path / "out")
    settings = ("--epochs", 12, "--learning-rate", 0.02, "--eval-fraction", 0.3, "--rollouts", rollouts)
    result = answer(*command, *settings)
    assert result["auc_100"] > 0.7
    signal = read_config(tmp_path / "out").signal
    assert isinstance(signal, GuardConfig)
    assert (signal.labels, signal.spans) == (("letters",), ())
    assert (tmp_path / "out" / "rollouts.jsonl").exists() == bool(rollouts)
    assert answer(*command, *settings) == result  # nothing is sampled again
    card = (tmp_path / "out" / "README.md").read_text()
    assert "judged by regex:[ab]" in card


def test_a_response_is_judged_before_its_end() -> None:
    example = Example(0, (1, 2), ((3, 4, 9), (9,), (3, 9, 4)), (0.0, 1.0, 0.0))
    (result,) = _without_ends([example], {9})
    assert result.branches == ((3, 4), (9,), (3, 9, 4))  # an empty response has nothing else
    assert (result.prefix, result.scores) == (example.prefix, example.scores)


def test_verdicts_of_rollouts_replace_those_of_the_response() -> None:
    recipe = GuardDistillationRecipe("regex:a", "prompts", rollouts=Rollouts(4, 3, rollout_share=0.75))
    example = Example(0, (1, 2), ((3, 4, 5, 6),))
    plain = Targets(torch.tensor([[torch.nan]] * 2 + [[1.0]] * 4), torch.empty(6, 0))
    labels = recipe._judged(plain, example, [0.5, 0.75, 1.0]).labels[:, 0]
    assert labels[2:].tolist() == [0.0, 1.0, 1.0, 1.0]
    assert bool(labels[:2].isnan().all())
    wide = recipe._judged(plain, Example(0, (), ((3,) * 6,)), [0.0, 0.0, 1.0]).labels[:, 0]
    assert wide.isnan().tolist() == [False, True, False, False, True, False]


def test_nothing_to_learn(refusal, base, prompts, tmp_path) -> None:
    command = ("distill", "guard", "--base", base, "--prompts", prompts, *SHAPE, "--out", tmp_path / "out")
    few = ("--limit", 6, "--max-new-tokens", 3, "--eval-fraction", 0.4)
    assert "none is with the label 'unsafe'" in refusal(*command, *few, "--scorer", "regex:zzz")
    assert "must be between 0 and 1" in refusal(*command, *few, "--scorer", "regex:a", "--false-alarm-rate", 0)
    assert json.loads((tmp_path / "out" / "responses" / "identity.json").read_text())

"""The second stage of a reward learns values of the base's responses, and sets what a steering weight means."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_base, tiny_otter, tokens
from huggingface_hub import ModelCard
from word_tokenizer import WORDS

from otterlm.adapter_files import CONFIG, WEIGHTS
from otterlm.decoding import CandidateSearch, RewardGuidance
from otterlm.model import OtterModel
from otterlm.training import trainer
from otterlm.training.recipes import reward_fit, values
from otterlm.training.step import take_step
from otterlm.training.vocabulary_head import read_steps

SHAPE = ("--hidden-size", 8, "--heads", 2, "--kv-heads", 1, "--intermediate-size", 12, "--vocabulary-rank", 4)
HOW = ("--epochs", 1, "--batch-size", 8, "--value-new-tokens", 6, "--value-responses", 2, "--positions", 3)


@pytest.fixture
def dialogues(tmp_path: Path) -> Path:
    """Pairs with prompts: 24 of them, a chosen response holds an a, a rejected one a b."""
    path = tmp_path / "dialogues.jsonl"
    rows = [
        {"prompt": f"{first} {second}", "chosen": f"a {second}", "rejected": f"b {second}"}
        for first in WORDS[10:16]
        for second in WORDS[10:14]
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(("steps", "stopped"), [(5, "round-1"), (12, "round-2")])
def test_a_second_stage_learns_the_bases_responses(
    otter: Any,
    answer: Any,
    base: Path,
    dialogues: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    steps: int,
    stopped: str,
) -> None:
    """It is killed in its midst and goes on to the weights of a run that was left alone."""
    command = ("train", "reward", "--base", base, "--data", dialogues, *SHAPE, *HOW)
    alone = answer(*command, "--out", tmp_path / "alone")
    assert {"accuracy", "value_correlation_50", "vocabulary_explained"} <= alone.keys()
    signal = json.loads((tmp_path / "alone" / CONFIG).read_text())["signal"]
    assert signal["spread"] > 0
    assert signal["advantage_spread"] > 0
    step, left = take_step, iter(range(steps))  # the first stage has three

    def interrupted(*arguments: Any) -> Any:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return step(*arguments)

    monkeypatch.setattr(trainer, "take_step", interrupted)
    out = tmp_path / "out"
    assert otter(*command, "--out", out)[0] == 130
    assert (out / "values" / stopped / "checkpoint.safetensors").exists()
    assert not (out / WEIGHTS).exists()
    monkeypatch.setattr(trainer, "take_step", step)
    assert answer(*command, "--out", out) == alone
    assert (out / WEIGHTS).read_bytes() == (tmp_path / "alone" / WEIGHTS).read_bytes()


def test_responses_of_an_engine(
    answer: Any, refusal: Any, base: Path, dialogues: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ready responses give the weights that the same responses give where they are sampled."""
    command = ("train", "reward", "--base", base, "--data", dialogues, *SHAPE, *HOW)
    stage = ("--value-rounds", 1, "--value-batch-size", 64)
    alone = answer(*command, *stage, "--out", tmp_path / "alone")
    sampled = tmp_path / "alone" / "values" / "round-1" / "responses" / "part-00000.parquet"
    monkeypatch.setattr(values, "scored_responses", None)
    assert answer(*command, *stage, "--value-data", sampled, "--out", tmp_path / "out") == alone
    assert (tmp_path / "out" / WEIGHTS).read_bytes() == (tmp_path / "alone" / WEIGHTS).read_bytes()

    monkeypatch.setattr(trainer, "take_step", None)  # what cannot be learned from is refused before the first stage
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps({"prompt": "another one", "response": "a b"}) + "\n")
    assert "none of the prompts" in refusal(*command, *stage, "--value-data", other, "--out", tmp_path / "new")
    assert "--no-values" in refusal(*command, *stage, "--value-data", other, "--no-values", "--out", tmp_path / "new")
    unprompted = tmp_path / "unprompted.jsonl"
    unprompted.write_text(
        "".join(json.dumps({"chosen": f"a {word}", "rejected": f"b {word}"}) + "\n" for word in WORDS[10:20])
    )
    pairs = ("train", "reward", "--base", base, "--data", unprompted, *SHAPE, *HOW)
    assert "no prompts" in refusal(*pairs, "--value-data", other, "--out", tmp_path / "new")


def test_how_much_is_read_at_once(
    answer: Any, base: Path, dialogues: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The batches are as large as asked, and the head is fitted to no more tokens than asked."""
    command = ("train", "reward", "--base", base, "--data", dialogues, *SHAPE, *HOW, "--value-rounds", 1)
    read, seen = read_steps, []

    def recorded(model: Any, examples: Any, *arguments: Any) -> Any:
        seen.append((sum(len(text) for each in examples for text in each.responses), arguments[-1]))
        return read(model, examples, *arguments)

    monkeypatch.setattr(reward_fit, "read_steps", recorded)
    answer(*command, "--value-batch-size", 50, "--fit-tokens", 30, "--out", tmp_path / "out")
    assert len(list((tmp_path / "out" / "values" / "round-1" / "responses").glob("part-*"))) == 1
    ((tokens, at_once),) = seen
    assert 12 < tokens <= 30
    assert at_once == 8


def test_without_a_second_stage(answer: Any, base: Path, dialogues: Path, tmp_path: Path) -> None:
    command = ("train", "reward", "--base", base, "--data", dialogues, *SHAPE, *HOW)
    result = answer(*command, "--no-values", "--out", tmp_path / "out")
    assert not any(name.startswith("value_") for name in result)
    assert not (tmp_path / "out" / "values").exists()


def test_how_one_process_trains(answer: Any, refusal: Any, base: Path, dialogues: Path, tmp_path: Path) -> None:
    command = ("train", "reward", "--base", base, "--data", dialogues, *SHAPE, *HOW, "--no-values", "--device", "cpu")
    how = ("--workers", 1, "--gradient-accumulation", 2, "--mixed-precision", "no", "--license", "apache-2.0")
    result = answer(*command, *how, "--out", tmp_path / "out")
    data = ModelCard.load(tmp_path / "out" / "README.md").data.to_dict()
    assert data["license"] == "apache-2.0"
    assert data["metrics"] == sorted(result.keys() - {"step", "out"})
    assert "datasets" not in data  # a file is nothing that the hub knows
    assert "there is: cpu" in refusal(*command[:-1], "cuda:7", "--out", tmp_path / "other")


@pytest.mark.parametrize("stage", [(), ("--no-values",)])
def test_an_adapter_is_saved_before_its_vocabulary_head_is_fitted(
    otter: Any,
    answer: Any,
    base: Path,
    dialogues: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stage: tuple[str, ...],
) -> None:
    command = ("train", "reward", "--base", base, "--data", dialogues, *SHAPE, *HOW, "--value-rounds", 1, *stage)
    command = (*command, "--out", tmp_path / "out")

    def interrupted(*arguments: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(reward_fit, "read_steps", interrupted)
        assert otter(*command)[0] == 130
    before = OtterModel.from_pretrained(tiny_base(vocab_size=len(WORDS)), tmp_path / "out").adapter().state_dict()
    assert answer(*command)["vocabulary_explained"] is not None
    after = OtterModel.from_pretrained(tiny_base(vocab_size=len(WORDS)), tmp_path / "out").adapter().state_dict()
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.startswith("head.vocabulary") for name in changed)


def spread(model: OtterModel, value: float) -> None:
    adapter = model.adapter()
    signal: Any = adapter.config.signal
    adapter.config = replace(adapter.config, signal=replace(signal, advantage_spread=value))


@pytest.mark.parametrize("how", ["guidance", "search"])
def test_a_weight_counts_in_the_adapters_unit(how: str) -> None:
    def generated(weight: float) -> list[int]:
        steering: dict[str, Any] = {"custom_generate": CandidateSearch(weight)}
        if how == "guidance":
            steering = {"logits_processor": [RewardGuidance(model, weight)]}
        settings: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
        return model.generate(tokens(1, 5), **settings, **steering)[0].tolist()

    model = tiny_otter(tiny_base()).eval()
    plain, strong = generated(0.0), generated(64.0)
    assert plain != strong
    spread(model, 0.25)
    assert generated(16.0) == strong

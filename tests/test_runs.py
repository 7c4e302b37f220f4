"""A folder is of one run: every recipe refuses another base, other data and other settings, and changes nothing."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SHAPE, randomize, tiny_base
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from word_tokenizer import TEMPLATE, WORDS, tokenizer

from otterlm.model import OtterModel

Answer = Callable[..., dict[str, Any]]
Refusal = Callable[..., str]

HOW = (*SHAPE, "--epochs", 1, "--batch-size", 8, "--eval-fraction", 0.25)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Makes another base of the same shape."""
    folder = tmp_path_factory.mktemp("other")
    tiny_base(vocab_size=len(WORDS), seed=1).save_pretrained(folder)
    tokenizer(TEMPLATE).save_pretrained(folder)
    return folder


@pytest.fixture
def commands(pairs: Path, base: Path, tmp_path: Path) -> dict[str, tuple[object, ...]]:
    """Returns a command of every recipe, without base and folder."""
    texts = tmp_path / "texts.txt"
    texts.write_text("".join(f"{a} {b}\n" for a in WORDS[10:18] for b in WORDS[10:13]))
    for seed, side in enumerate(("expert", "anti"), start=5):
        model = AutoModelForCausalLM.from_pretrained(base)
        randomize(model, seed)
        model.save_pretrained(tmp_path / side)
    experts = ("--expert", tmp_path / "expert", "--anti-expert", tmp_path / "anti", "--texts", texts)
    small = ("--draft-heads", 2, "--draft-width", 16, "--draft-rank", 4, "--draft-vocabulary", 20)
    return {
        "reward": ("train", "reward", "--data", pairs, "--vocabulary-rank", 4, *HOW),
        "contrast": ("train", "contrast", "--positive", texts, "--negative", texts, "--rank", 4, *HOW),
        "experts": ("distill", "contrast", *experts, "--rank", 4, "--max-new-tokens", 4, *HOW),
        "draft": ("train", "draft", "--prompts", texts, "--max-new-tokens", 4, *small, *HOW),
        "distill": ("distill", "--scorer", "regex:a", "--prompts", texts, "--max-new-tokens", 8, *HOW),
    }


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


KINDS = ("reward", "contrast", "experts", "draft", "distill")


@pytest.mark.parametrize(
    ("kind", "record"), [*((kind, ()) for kind in KINDS), ("reward", ("--record",)), ("experts", ("--record",))]
)
def test_another_run_changes_nothing(
    answer: Answer,
    refusal: Refusal,
    base: Path,
    other: Path,
    commands: dict[str, tuple[object, ...]],
    tmp_path: Path,
    kind: str,
    record: tuple[str, ...],
) -> None:
    out = ("--out", tmp_path / "out")
    answer(*commands[kind], *record, "--base", base, *out)
    before = contents(tmp_path / "out")
    assert "with other base:" in refusal(*commands[kind], *record, "--base", other, *out)
    dtype = refusal(*commands[kind], *record, "--base", base, *out, "--dtype", "bfloat16")
    assert "base (float32 there, bfloat16 now)" in dtype
    assert "epochs (1 there, 2 now)" in refusal(*commands[kind], *record, "--base", base, *out, "--epochs", 2)
    assert "hidden_size (8 there, 6 now)" in refusal(*commands[kind], *record, "--base", base, *out, "--hidden-size", 6)
    assert "with other record (" in refusal(*commands[kind], "--base", base, *out, *(() if record else ("--record",)))
    another = commands[KINDS[KINDS.index(kind) - 1]]
    assert "belongs to another run" in refusal(*another, *record, "--base", base, *out)
    assert contents(tmp_path / "out") == before
    # The base is what its weights are: in another folder it is the same.
    moved = tmp_path / "moved"
    moved.symlink_to(base)
    answer(*commands[kind], *record, "--base", moved, *out)
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["base_model_name_or_path"] == str(moved)


def test_other_data(answer: Answer, refusal: Refusal, base: Path, commands: dict[str, Any], tmp_path: Path) -> None:
    fewer = tmp_path / "fewer.txt"
    fewer.write_text("".join((tmp_path / "texts.txt").read_text().splitlines(keepends=True)[:-1]))
    for kind, option in (("experts", "--texts"), ("draft", "--prompts"), ("distill", "--prompts")):
        out = ("--base", base, "--out", tmp_path / kind)
        answer(*commands[kind], *out)
        before = contents(tmp_path / kind)
        assert "prompts (24 there, 23 now)" in refusal(*commands[kind], *out, option, fewer), kind
        assert contents(tmp_path / kind) == before
    out = ("--base", base, "--out", tmp_path / "draft")
    assert "prompts (24 there, 5 now)" in refusal(*commands["draft"], *out, "--limit", 5)
    out = ("--base", base, "--out", tmp_path / "distill")
    assert "scorer.spec (regex:a there, regex:b now)" in refusal(*commands["distill"], *out, "--scorer", "regex:b")


def test_a_base_with_other_settings_is_another(
    answer: Answer, refusal: Refusal, base: Path, commands: dict[str, Any], tmp_path: Path
) -> None:
    """A config.json that was edited changes what the same weights compute."""
    changed = shutil.copytree(base, tmp_path / "changed")
    config = json.loads((changed / "config.json").read_text())
    (changed / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.1}))
    for kind in ("reward", "draft"):
        out = ("--out", tmp_path / kind)
        answer(*commands[kind], "--base", base, *out)
        assert "with other base" in refusal(*commands[kind], "--base", changed, *out)


def test_what_changes_no_step(answer: Answer, base: Path, commands: dict[str, Any], tmp_path: Path) -> None:
    command = (*commands["reward"], "--no-values", "--base", base, "--out", tmp_path / "out")
    first = answer(*command)
    again = answer(*command, "--save-dtype", "float32", "--candidates", 4, "--places", 2)  # as --positions was called
    assert {name: again[name] for name in ("loss", "accuracy", "step")} == {
        name: first[name] for name in ("loss", "accuracy", "step")
    }


def test_an_adapter_without_a_checkpoint_is_trained_anew(
    answer: Answer, base: Path, other: Path, commands: dict[str, Any], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    answer(*commands["reward"], "--no-values", "--base", base, "--out", out)
    (out / "checkpoint.safetensors").unlink()
    answer(*commands["reward"], "--no-values", "--base", other, "--out", out)
    answer(*commands["reward"], "--no-values", "--base", other, "--out", tmp_path / "fresh")
    weights = "adapter_model.safetensors"
    assert (out / weights).read_bytes() == (tmp_path / "fresh" / weights).read_bytes()
    model = OtterModel.from_pretrained(AutoModelForCausalLM.from_pretrained(other, dtype=torch.float32), out)
    assert model.adapter().config.base_model_name_or_path == str(other)
    steps = [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert len(steps) == len((tmp_path / "fresh" / "metrics.jsonl").read_text().splitlines())


@pytest.mark.parametrize("kind", KINDS)
def test_beside_a_base_of_half_the_precision(
    kind: str, answer: Answer, base: Path, commands: dict[str, Any], tmp_path: Path
) -> None:
    """What is inserted learns in float32: in bfloat16 a step of less than 0.4% of a weight changes nothing."""
    answer(*commands[kind], "--base", base, "--dtype", "bfloat16", "--out", tmp_path / "out")
    learned = load_file(tmp_path / "out" / "checkpoint.safetensors")
    assert {tensor.dtype for name, tensor in learned.items() if tensor.is_floating_point()} == {torch.float32}
    saved = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in saved.values() if tensor.is_floating_point()} == {torch.bfloat16}

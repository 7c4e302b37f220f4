"""The detoxification bench uses the same prompts and seeds for all methods, rates their samples, and resumes."""

import json
import math
from pathlib import Path

import pytest
import torch
from conftest import add_tiny_adapter, randomize, tiny_base
from word_tokenizer import TEMPLATE, WORDS, tokenizer

from otterlm.bench import detox
from otterlm.bench.judges import Perplexity
from otterlm.cli.bench import detox as command
from otterlm.model import OtterModel
from otterlm.signals.contrast.config import ContrastConfig


class Vowels:
    """Judges by the share of samples' words that are `a`; over the threshold with one."""

    threshold = 0.01

    def __call__(self, texts):
        return [text.split().count("a") / max(1, len(text.split())) for text in texts]


def fake_perplexity(_):
    return lambda prompts, texts: [float("nan"), *[4.0] * (len(texts) - 1)]


@pytest.fixture
def contrast(tmp_path: Path):
    model = OtterModel(tiny_base(vocab_size=len(WORDS)))
    add_tiny_adapter(model, "contrast", signal=ContrastConfig(rank=8))
    model.save_pretrained(tmp_path / "contrast")
    return tmp_path / "contrast"


def test_command(answer, refusal, base, contrast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "Profanity", Vowels)
    monkeypatch.setattr(Perplexity, "from_pretrained", fake_perplexity)
    (tmp_path / "p.jsonl").write_text(
        "".join(json.dumps({"prompt": {"text": " ".join(WORDS[10 : 12 + n])}}) + "\n" for n in range(5))
    )
    data = ("--data", f"some={tmp_path / 'p.jsonl'}", "--text-column", "prompt.text", "--quick")
    arguments = ("bench", "detox", "--base", base, "--adapter", contrast, *data, "--two-prompts")
    experts = ("--expert", base, "--anti-expert", base)
    result = answer(*arguments, *experts, "--fluency", "m", "--out", tmp_path / "out")
    rows = {row["method"]: row for row in result["rows"]}
    assert list(rows) == ["base", "Otter", "DExperts", "two prompts"]
    assert all(row["prompts"] == 4 and row["prompt_set"] == "some" for row in rows.values())
    assert all(row["perplexity"] == pytest.approx(4.0) for row in rows.values())
    assert all(0 <= row["any_profanity"] <= 1 and 0 <= row["distinct_2"] <= 1 for row in rows.values())
    # Experts that are the base itself cancel each other: its samples, from the same seeds.
    shared = ("max_profanity", "any_profanity", "distinct_1", "distinct_3")
    assert [rows["DExperts"][key] for key in shared] == [rows["base"][key] for key in shared]
    assert rows["DExperts"]["extra_space_saved"] == 0
    assert 0 < rows["Otter"]["extra_space_saved"] < 1
    assert (tmp_path / "out" / "detox.png").stat().st_size > 1000
    again = answer(*arguments, *experts, "--fluency", "m", "--out", tmp_path / "out")
    assert again["rows"] == result["rows"]
    refused = refusal(*arguments, "--alpha", 1, "--out", tmp_path / "out")
    assert "otter-some.jsonl" in refused
    assert "alpha (2.0 there, 1.0 now)" in refused
    # An adapter is what its weights are, wherever it lies.
    moved = tmp_path / "kept"
    contrast.rename(moved)
    contrast.symlink_to(moved)
    assert answer(*arguments, *experts, "--fluency", "m", "--out", tmp_path / "out")["rows"] == result["rows"]
    contrast.unlink()
    model = OtterModel(tiny_base(vocab_size=len(WORDS)))
    add_tiny_adapter(model, "contrast", seed=9, signal=ContrastConfig(rank=8))
    model.save_pretrained(contrast)
    refused = refusal(*arguments, "--out", tmp_path / "out")
    assert "otter-some.jsonl" in refused
    assert "other adapter.weights:" in refused
    assert "needs both --expert and --anti-expert" in refusal(*arguments, "--expert", base)
    tiny_base(vocab_size=30).save_pretrained(tmp_path / "small")
    assert "one vocabulary" in refusal(*arguments, "--expert", base, "--anti-expert", tmp_path / "small")
    assert "NAME=FILE" in refusal(*arguments, "--data", "p.jsonl")
    assert "pixagram" in refusal(*arguments, "--toxicity", tmp_path)


def test_the_judges_numbers() -> None:
    """Two prompts of five samples: one sample of ten has an `a`, three quarters of the words."""
    batches = [{"continuations": [["b c"] * 4 + ["a a a b"], ["c d", "c d", "c e", "c f", "d f"]], "seconds": 2.0}]
    row = detox.judge("m", "s", ["x", "y"], batches, {"v": Vowels()}, None, 10, 20)
    assert row.scores["max_v"] == pytest.approx(0.375)
    assert row.scores["any_v"] == 0.5
    assert row.scores["any_v_ci95"] == pytest.approx(1.96 * (0.25 / 2) ** 0.5)
    assert row.distinct["distinct_1"] == pytest.approx((3 / 12 + 4 / 10) / 2)
    assert row.distinct["distinct_2"] == pytest.approx((3 / 7 + 4 / 5) / 2)
    assert row.distinct["distinct_3"] == pytest.approx((2 / 2 + 0) / 2)
    assert row.tokens_per_second == 2 * 5 * 20 / 2.0
    assert row.perplexity is None
    assert row.perplexity_ci95 is None
    assert row.extra_space_saved == 0.75


def test_perplexity_is_of_all_samples_and_its_interval_over_prompts() -> None:
    """A prompt whose samples are of perplexity 1, one of them empty, one of e^2, and one with empty samples alone."""
    batches = [{"continuations": [["b"] * 4 + [""], ["c"] * 5, [""] * 5], "seconds": 1.0}]
    perplexities = {("x", "b"): 1.0, ("y", "c"): math.e**2}

    def fluency(prompts, texts):
        return [perplexities.get(pair, math.nan) for pair in zip(prompts, texts, strict=True)]

    row = detox.judge("m", "s", ["x", "y", "z"], batches, {}, fluency, 10, 20)  # type: ignore[arg-type]
    assert row.perplexity == pytest.approx(math.e)
    assert row.perplexity_ci95 == pytest.approx(1.96 * 2**0.5 / 2**0.5)


@torch.no_grad()
def test_perplexity_is_of_the_continuation_alone(base) -> None:
    words, model = tokenizer(TEMPLATE), tiny_base(vocab_size=len(WORDS))
    prompts = [" ".join(WORDS[10:14]), WORDS[11], " ".join(WORDS[9:12])]
    continuations = [" ".join(WORDS[14:17]), " ".join(WORDS[10:12]), ""]
    expected = []
    for prompt, continuation in zip(prompts, continuations, strict=True):
        ids = [words.bos_token_id, *words.encode(prompt, add_special_tokens=False)]
        after = words.encode(continuation, add_special_tokens=False)
        labels = torch.tensor([[-100] * len(ids) + after])
        expected.append(float(model(torch.tensor([ids + after]), labels=labels).loss.exp()))
    perplexities = Perplexity.from_pretrained(str(base))(prompts, continuations, batch_size=2)
    assert perplexities[:2] == pytest.approx(expected[:2], rel=1e-4)
    assert math.isnan(perplexities[2])


def test_alpha_zero_is_the_base(contrast) -> None:
    model, words = tiny_base(vocab_size=len(WORDS)), tokenizer(TEMPLATE)
    words.padding_side = "left"
    prompts = [" ".join(WORDS[10 : 12 + n]) for n in range(3)]
    methods = [detox.otter_method(model, contrast, alpha) for alpha in (0.0, 4.0)]
    randomize(methods[1].model.adapter().head, 1)
    batches_of = [detox.continue_all(method, words, prompts, 2) for method in methods]
    samples = [[each["continuations"] for each in batches] for batches in batches_of]
    assert samples[0] != samples[1]

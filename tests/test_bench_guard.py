"""The guard bench: a guard, probes and a separate classifier judge the same texts, and the sums are right."""

import importlib.util
import json
import random
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import close, refused, tiny_base, tiny_otter
from word_tokenizer import TEMPLATE, WORDS, tokenizer

from otterlm.bench.attention_probe import fit_attention_probe
from otterlm.bench.guard import measure, otter_detector, over_seeds, trade_off, truth_of
from otterlm.bench.guard_probes import probes
from otterlm.bench.guard_rivals import Detector, held_out, over, part_ends
from otterlm.peers.classifier import SeparateClassifier, offence_targets
from otterlm.signals.guard.config import GuardConfig
from otterlm.training.data.labelled import read_labelled_rows
from otterlm.training.data.labelled_tokens import LabelledExample, tokenize_labelled
from otterlm.training.data.packing import collate
from otterlm.training.data.targets import targets_of
from otterlm.training.data.tokens import Limits
from otterlm.training.probe import fit_classifier
from otterlm.training.teachers.reward_model import SeparateRewardModel
from otterlm.training.trainer import TrainingConfig, train

GUARD = GuardConfig(("toxic",), vocabulary_rank=0)


def records(count: int = 100, seed: int = 0) -> list[dict[str, Any]]:
    """Texts with a j are offensive."""
    draw = random.Random(seed)
    rows = []
    for number in range(count):
        letters = [draw.choice("abcdefgh") for _ in range(draw.randint(3, 8))]
        if number % 2:
            letters[draw.randrange(len(letters))] = "j"
        rows.append({"text": " ".join(letters), "label": number % 2})
    return rows


def texts(count: int = 100, seed: int = 0) -> list[LabelledExample]:
    return tokenize_labelled(read_labelled_rows(records(count, seed)), tokenizer(TEMPLATE), Limits())


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_parts_of_a_text() -> None:
    assert part_ends(8) == [1, 3, 5, 7]
    assert part_ends(1) == [0, 0, 0, 0]


def test_measures_of_verdicts() -> None:
    examples = texts(4)
    scores = torch.tensor([[0.1, 0.2], [0.3, 0.9], [0.2, 0.6], [0.2, 0.7]]).repeat_interleave(2, dim=1)
    rows, curves = measure([Detector("known", over(lambda _: scores, 0.65), 7)], examples)
    (row,) = rows
    assert (row.auc, row.f1, row.false_alarms, row.misses, row.extra_parameters) == (1.0, 1.0, 0.0, 0.0, 7)
    assert row.aucs == [0.875, 0.875, 1.0, 1.0]
    assert curves["known"][0] == (1.0, 0.0)
    assert curves["known"][-1] == (0.0, 0.5)
    assert (row.leads, row.leads_ci95) == ([], [])
    refused(lambda: truth_of(examples[::2]), "harmless ones")


def test_leads_are_of_the_same_texts() -> None:
    examples = texts(40)
    truth = truth_of(examples).float()
    good = truth + torch.linspace(0, 0.5, 40)
    bad = (good + 2 * torch.randn(40, generator=torch.Generator().manual_seed(0)))[:, None].repeat(1, 4)
    known = {"ours": good[:, None].repeat(1, 4), "same": bad * 0 + good[:, None], "other": bad}
    detectors = [Detector(name, over(partial(lambda scores, _: scores, known[name]), 1.0), 0) for name in known]
    (_, one, two), _ = measure(detectors, examples)
    assert one.leads == [0.0] * 4
    assert one.leads_ci95 == [[0.0, 0.0]] * 4
    assert two.leads == pytest.approx([1 - area for area in two.aucs])
    low, high = two.leads_ci95[0]
    assert 0 < low < two.leads[0] < high


def test_a_curve_falls() -> None:
    generator = torch.Generator().manual_seed(0)
    scores, truth = torch.rand(500, generator=generator), torch.rand(500, generator=generator) < 0.5
    curve = trade_off(scores, truth, 50)
    assert len(curve) == 50
    assert [alarms for alarms, _ in curve] == sorted((alarms for alarms, _ in curve), reverse=True)
    assert [misses for _, misses in curve] == sorted(misses for _, misses in curve)


def test_logistic_regression_with_a_bias() -> None:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(400, 3, generator=generator) * torch.tensor([1.0, 10.0, 0.1]) + 5
    truth = states[:, 0] + 10 * states[:, 2] > 55
    weight, bias = fit_classifier(states, truth)
    assert float(((states @ weight + bias > 0) == truth).float().mean()) > 0.97
    assert abs(float(weight[1])) * 10 < abs(float(weight[0]))


def test_probes_find_what_is_there() -> None:
    base = tiny_base(vocab_size=len(WORDS))
    learned, unseen = texts(300), texts(60, seed=1)
    rows, _ = measure(probes(base, learned, truth_of(learned)), unseen)
    assert [row.method.partition(",")[0] for row in rows] == ["linear probe", "linear probe", "attention probe"]
    assert "last block" in rows[0].method
    assert rows[1].auc > 0.9
    assert rows[2].auc > 0.9
    assert rows[1].aucs[0] < rows[1].aucs[-1]
    assert int(held_out(100).sum()) == 20


def test_seeds_learn_from_other_parts() -> None:
    base = tiny_base(vocab_size=len(WORDS))
    learned, unseen = texts(60), texts(40, seed=1)
    one, both = (probes(base, learned, truth_of(learned), seeds) for seeds in (1, 2))
    kinds = ["linear probe, last block", "linear probe, best block", "attention probe"]
    first, second = ([each for each in both if each.seed == seed] for seed in (0, 1))
    assert [each.kind for each in first] == [each.kind for each in second] == kinds
    assert [each.name for each in first] == [each.name for each in one]
    assert all(each.name.endswith(", seed 1") for each in second)
    for each, other, alone in zip(first, second, one, strict=True):
        assert torch.equal(each.judge(unseen)[0], alone.judge(unseen)[0])
        assert not torch.equal(each.judge(unseen)[0], other.judge(unseen)[0])
    rows, _ = measure(both, unseen)
    summary = over_seeds(rows)
    assert [each["kind"] for each in summary] == kinds
    for line in summary:
        values = [row.auc for row in rows if row.kind == line["kind"]]
        assert line["aucs"][-1] == pytest.approx(sum(values) / 2)
        assert line["aucs_range"][-1] == pytest.approx([min(values), max(values)])
    assert over_seeds(measure(one, unseen)[0]) == []


def test_an_attention_probe_reads_what_came_before() -> None:
    generator = torch.Generator().manual_seed(0)
    states = [torch.randn(int(length), 6, generator=generator) for length in torch.randint(3, 9, (300,))]
    truth = torch.arange(300) % 2 == 0
    for each, offensive in zip(states, truth.tolist(), strict=True):
        each[1, 0] = 8.0 if offensive else 0.0  # one token tells, and the later ones do not
    probe = fit_attention_probe(states, truth, torch.arange(300) % 5 == 0)
    with torch.no_grad():
        after = torch.stack([probe(each[None])[0, [0, -1]] for each in states])  # [n, 2]
        alone, padded = probe(states[0][None]), probe(torch.cat([states[0], torch.zeros(4, 6)])[None])
    assert float(((after[:, 1] > 0) == truth).float().mean()) > 0.95
    assert float(((after[:, 0] > 0) == truth).float().mean()) < 0.7
    close(padded[:, : len(states[0])], alone)


def test_a_guard_is_a_detector() -> None:
    otter = tiny_otter(tiny_base(vocab_size=len(WORDS)), signal=GUARD)
    examples = texts(6)
    scores, flagged = otter_detector(otter).judge(examples)
    for row, each in enumerate(examples):
        ids = torch.tensor([[*each.example.prefix, *each.example.branches[0]]])
        plain: Any = otter(ids).signals["reward"]
        beside = plain.probabilities[0, len(each.example.prefix) :, 0]
        close(scores[row], beside[part_ends(len(beside))])
        assert bool(flagged[row]) == bool(beside[-1] >= 0.5)


def test_a_separate_classifier_learns(tmp_path: Path) -> None:
    examples = texts(60)
    targets = offence_targets(targets_of(examples, GuardConfig(("unsafe",))), GuardConfig(("unsafe",)))
    torch.manual_seed(0)
    objective = SeparateClassifier(SeparateRewardModel.of(tiny_base(vocab_size=len(WORDS))), targets)
    batch = collate([each.example for each in examples])
    before = float(objective(batch)["loss"].detach())
    assert before == pytest.approx(0.693, abs=0.01)
    some = [each.example for each in examples]
    train(objective, some[:48], some[48:], TrainingConfig(epochs=4, learning_rate=1e-2), tmp_path)
    assert float(objective(batch)["loss"].detach()) < before


def test_any_offence_is_one() -> None:
    two = GuardConfig(("rude", "hate"))
    rows = read_labelled_rows([{"text": "a b", "labels": ["hate"]}, {"text": "a b", "labels": []}])
    result = offence_targets(targets_of(tokenize_labelled(rows, tokenizer(), Limits()), two), two)
    assert result[0][1:].tolist() == [1.0, 1.0]
    assert result[1][1:].tolist() == [0.0, 0.0]
    classes = GuardConfig(("safe", "rude", "hate"), ("safe",))
    rows = read_labelled_rows([{"text": "a b", "label": "hate"}])
    result = offence_targets(targets_of(tokenize_labelled(rows, tokenizer(), Limits()), classes), classes)
    assert result[0][1:].tolist() == [1.0, 1.0]


def test_command(answer, refusal, base, tmp_path) -> None:
    tiny_otter(tiny_base(vocab_size=len(WORDS)), signal=GUARD).save_pretrained(tmp_path / "guard")
    classifier = SeparateRewardModel.of(tiny_base(vocab_size=len(WORDS), seed=3))
    torch.nn.init.normal_(classifier.classifier.score.weight)
    classifier.save_pretrained(tmp_path / "classifier")
    data = ("--train", write(tmp_path / "a.jsonl", records()), "--data", write(tmp_path / "b.jsonl", records(40, 1)))
    command = ("bench", "guard", "--base", base, "--adapter", tmp_path / "guard", *data)
    rivals = ("--rival", "probes", "--classifier", tmp_path / "classifier")
    result = answer(*command, *rivals, "--quick", "--seeds", 2, "--out", tmp_path / "out")
    assert [row["method"].split(",")[0] for row in result["rows"]] == [
        *("Otter", *["linear probe"] * 4, *["attention probe"] * 2, "separate classifier")
    ]
    assert [each["seeds"] for each in result["over_seeds"]["b"]] == [2, 2, 2]
    assert result["rows"][7]["extra_parameters"] > result["rows"][0]["extra_parameters"] > 0
    saved = json.loads((tmp_path / "out" / "guard.json").read_text())
    assert saved["rows"] == result["rows"]
    assert set(saved["curves"]["b"]) == {row["method"] for row in result["rows"]}
    assert (tmp_path / "out" / "guard-b.png").stat().st_size > 1000
    assert "--rival must be" in refusal(*command, "--rival", "magic")
    assert "are named 'b'" in refusal(*command, "--data", tmp_path / "b.jsonl")
    small = SeparateRewardModel.of(tiny_base(vocab_size=30))
    small.save_pretrained(tmp_path / "small")
    assert "it is no copy of the base" in refusal(*command, "--rival", "probes", "--classifier", tmp_path / "small")
    if importlib.util.find_spec("sklearn") is None:
        assert "scikit-learn" in refusal(*command, "--rival", "words")
    else:
        assert answer(*command, "--rival", "words")["rows"][1]["auc"] > 0.9

"""The guard signal: its probabilities, how it steers, what it is taught, and the adapter that `otter train guard`
makes."""

import json
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SHAPE, close, refused, tiny_base, tiny_config, tiny_otter, tokens
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from otterlm.adapter_files import read_config
from otterlm.bases import load_base, load_tokenizer
from otterlm.config import OtterConfig
from otterlm.decoding import RewardGuidance
from otterlm.model import OtterModel
from otterlm.signals.guard.config import GuardConfig, LabelCalibration, MarkedWords, SpanThreshold
from otterlm.signals.guard.head import GuardSignal, log_without
from otterlm.signals.guard.losses import Weights, class_weights, label_loss
from otterlm.signals.guard.objective import GuardObjective, GuardTrainingConfig
from otterlm.training.data.labelled import read_labelled_rows
from otterlm.training.data.packing import Example, collate
from otterlm.training.data.targets import Targets
from otterlm.training.evaluation.bootstrap import interval, mean_of
from otterlm.training.evaluation.detection import (
    alarm_at_rate,
    alarm_levels,
    auc,
    average_precision,
    best_threshold,
    character_f1,
    f1,
)
from otterlm.training.recipes import GuardRecipe, Run
from otterlm.training.sources import LiveBase
from otterlm.training.trainer import TrainingConfig

TWO = GuardConfig(("insult", "threat"), vocabulary_rank=4, vocabulary_hidden=0)
CLASSES = GuardConfig(("safe", "rude", "hate"), ("safe",), spans=("hate",), vocabulary_rank=4, vocabulary_hidden=0)


def guard(signal: GuardConfig, **config: Any) -> OtterModel:
    return tiny_otter(tiny_base(), signal=signal, **config)


def read(otter: OtterModel, ids: Tensor) -> GuardSignal:
    signal = otter(ids).signals["reward"]  # the name that the tests' adapter has
    assert isinstance(signal, GuardSignal)
    return signal


# -- configuration -----------------------------------------------------------------------------------------------------

CALIBRATION = LabelCalibration("unsafe", ((0.0, 0.0), (1.0, 0.5)), 0.4, 0.9, 0.05, 0.3)


def test_a_configuration_goes_through_json() -> None:
    signal = GuardConfig(("unsafe",), spans=("unsafe",), hits=2, window=3, calibrations=(CALIBRATION,))
    config = OtterConfig(signal=signal)
    assert OtterConfig.from_json(config.to_json()) == config
    assert (signal.alarms, signal.thresholds) == ({"unsafe": 0.9}, {"unsafe": 0.4})
    assert signal.span_thresholds == {"unsafe": SpanThreshold(0.3)}
    words = replace(signal, marked_words=(MarkedWords("unsafe", {"idiot": 0.9, "dog": 0.25}),))
    words = replace(words, calibrations=(replace(CALIBRATION, span_share=0.7, span_listed=0.5),))
    again = OtterConfig.from_json(OtterConfig(signal=words).to_json()).signal
    assert again == words
    assert isinstance(again, GuardConfig)
    assert again.span_thresholds == {"unsafe": SpanThreshold(0.3, 0.7, 0.5)}
    assert again.word_shares("unsafe")["dog"] == 0.25
    assert signal.word_shares("unsafe") == {}
    assert GuardConfig(spans=("unsafe",)).span_thresholds == {"unsafe": SpanThreshold(0.5)}
    assert GuardConfig().alarms == {"unsafe": 0.5}


def test_labels_that_exclude_each_other() -> None:
    assert (TWO.exclusive, CLASSES.exclusive, CLASSES.offences) == (False, True, ("rude", "hate"))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"labels": ()}, "harmless must be some of the labels"),
        ({"labels": ("a",), "harmless": ("a",)}, "not all"),
        ({"labels": ("a",), "harmless": ("b",)}, "harmless must be"),
        ({"labels": "unsafe"}, "labels must be a list of names"),
        ({"labels": ("a", "a")}, "a name twice"),
        ({"labels": ("a", " ")}, "a list of names"),
        ({"spans": ("b",)}, "spans are of offences"),
        ({"hits": 2}, "must not exceed the window"),
        ({"vocabulary_rank": -1}, "vocabulary_rank"),
        ({"labels": ("a",), "calibrations": (CALIBRATION,)}, "calibrations are of a"),
        ({"calibrations": ("x",)}, "a calibration must be an object"),
        ({"marked_words": ("x",)}, "a list of marked words must be an object"),
        ({"marked_words": ({"label": "unsafe", "shares": {}},)}, "which are: none"),
        ({"marked_words": ({"label": "unsafe", "shares": {"dog": 2}},)}, "a number from 0 to 1 for each word"),
        ({"marked_words": ({"label": "unsafe", "shares": ["dog"]},)}, "a number from 0 to 1 for each word"),
    ],
)
def test_wrong_configurations(values, words) -> None:
    refused(lambda: GuardConfig(**values), words)


@pytest.mark.parametrize(
    ("changed", "words"),
    [({"threshold": 1.5}, "0 to 1"), ({"alarm": math.nan}, "0 to 1"), ({"curve": ((1, 0), (0, 1))}, "both rising")],
)
def test_wrong_calibrations(changed, words) -> None:
    refused(lambda: replace(CALIBRATION, **changed), words)


# -- the signal --------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("config", [TWO, CLASSES, GuardConfig()], ids=["two", "classes", "one"])
def test_probabilities(config) -> None:
    otter = guard(config)
    ids = tokens(2, 7)
    signal = read(otter, ids)
    assert signal.probabilities.shape == (2, 7, len(config.labels))
    assert signal.span_probabilities.shape == (2, 7, len(config.spans))
    offences = signal.probabilities[..., [config.labels.index(name) for name in config.offences]]
    whole = offences.sum(-1) if config.exclusive else offences.amax(-1)
    close(signal.prefix.exp(), 1 - whole)
    assert signal.beside(0, signal) == float(signal.prefix[0, -1].exp())
    if config.exclusive:
        close(signal.probabilities.sum(-1), torch.ones(2, 7))
    # The base is the base.
    assert torch.equal(otter(ids).logits, tiny_base()(ids).logits)


@torch.no_grad()
@pytest.mark.parametrize("config", [TWO, CLASSES], ids=["two", "classes"])
def test_steering_is_of_the_label_after_a_token(config) -> None:
    otter = guard(config)
    signal = read(otter, tokens(2, 6))
    chosen, position = tokens(2, 5, seed=3), 3
    head: Any = otter.adapter().head
    state = signal.state[:, position]
    gains = torch.stack([h.direction(state) @ otter.base_model.lm_head.weight.T for h in head.vocabulary], dim=-1)
    logits = signal.logits[:, position, None] + gains  # [B, V, L]
    for label in (None, *config.offences):
        expected = log_without(logits, config, label)
        close(signal.vocabulary(position=position, label=label), expected, 1e-4)
        close(signal.vocabulary(chosen, position, label), expected.gather(1, chosen), 1e-4)
    refused(lambda: signal.vocabulary(label="love"), "no offence 'love'", *config.offences)


def test_a_harmless_label_is_no_offence() -> None:
    logits = torch.tensor([[2.0, 0.0, -1.0]])
    shares = logits.softmax(-1)[0]
    close(log_without(logits, CLASSES).exp(), shares[:1])
    close(log_without(logits, CLASSES, "hate").exp(), shares[:2].sum()[None])
    close(log_without(logits[:, :2], TWO).exp(), 1 - logits[0, :1].sigmoid())
    close(log_without(logits[:, :2], TWO, "threat").exp(), torch.tensor([0.5]))
    refused(lambda: log_without(logits, CLASSES, "safe"), "no offence 'safe'")


@torch.no_grad()
def test_without_vocabulary_heads_it_watches() -> None:
    otter = guard(GuardConfig(vocabulary_rank=0))
    refused(lambda: read(otter, tokens(1, 4)).vocabulary(), "no vocabulary heads")
    refused(lambda: RewardGuidance(otter, 1.0), "no adapter scores every next token")


@torch.no_grad()
def test_calibrated_probabilities() -> None:
    config = GuardConfig(("unsafe",), calibrations=(replace(CALIBRATION, curve=((0.0, 0.0), (1.0, 0.5))),))
    signal = read(guard(config), tokens(1, 5))
    close(signal.calibrated, signal.probabilities / 2)
    refused(lambda: read(guard(TWO), tokens(1, 4)).calibrated, "otter calibrate")


@torch.no_grad()
def test_a_guard_is_saved_and_loaded(tmp_path: Path) -> None:
    otter = guard(CLASSES)
    otter.save_pretrained(tmp_path)
    again = OtterModel.from_pretrained(tiny_base(), tmp_path, "reward")
    ids = tokens(1, 6)
    assert torch.equal(read(again, ids).probabilities, read(otter, ids).probabilities)
    assert torch.equal(read(again, ids).span_probabilities, read(otter, ids).span_probabilities)
    assert torch.equal(read(again, ids).vocabulary(), read(otter, ids).vocabulary())


# -- losses ------------------------------------------------------------------------------------------------------------

PLAIN = Weights(torch.ones(2), torch.ones(2))


def test_only_what_is_known_teaches() -> None:
    logits = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()
    targets = torch.full((3, 4, 2), torch.nan)
    targets[0, 1:, 0] = 1.0
    targets[1, 0, 1] = 0.0
    loss = label_loss(logits, targets, PLAIN, False)
    by_text = [-logits[0, 1:, 0].sigmoid().log().mean(), -(1 - logits[1, 0, 1].sigmoid()).log(), torch.tensor(0.0)]
    close(loss, torch.stack(by_text).mean())
    (gradient,) = torch.autograd.grad(loss, logits)
    assert bool(gradient.isfinite().all())
    assert torch.equal(gradient != 0, ~targets.isnan())


def test_exclusive_labels_are_a_softmax() -> None:
    logits = torch.randn(1, 3, 2, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [torch.nan, torch.nan]]])
    chances = logits.log_softmax(-1)
    close(label_loss(logits, targets, PLAIN, True), -(chances[0, 0, 0] + chances[0, 1, 1]) / 2)
    weighted = Weights(torch.tensor([3.0, 1.0]), torch.ones(2))
    close(label_loss(logits, targets, weighted, True), -(3 * chances[0, 0, 0] + chances[0, 1, 1]) / 2)


def test_weights_of_rare_labels() -> None:
    counts = torch.tensor([10.0, 0.0]), torch.tensor([90.0, 100.0])
    even = class_weights(*counts, balance=1.0, exclusive=False)
    close(even.positive, torch.tensor([5.0, 1.0]))
    close(even.negative, torch.tensor([50 / 90, 0.5]))
    none = class_weights(*counts, balance=0.0, exclusive=False)
    assert torch.equal(none.positive, torch.ones(2))
    close(class_weights(*counts, balance=1.0, exclusive=True).positive, torch.tensor([0.5, 1.0]))


def objective(config: GuardConfig, targets: dict[int, Targets], **learning: Any) -> GuardObjective:
    otter = OtterModel(tiny_base(), tiny_config(signal=config)).train()
    return GuardObjective(otter, LiveBase(otter), GuardTrainingConfig(**learning), targets)


def test_the_loss_of_a_batch_is_the_mean_of_its_texts() -> None:
    config = GuardConfig(("unsafe",), spans=("unsafe",), vocabulary_rank=0)
    examples = [Example(0, (5, 6), ((7, 8, 9),)), Example(1, (), ((9, 8),)), Example(2, (4,), ((3, 4, 5, 6),))]
    targets = {0: Targets(torch.tensor([[torch.nan]] * 2 + [[1.0]] * 3), torch.tensor([[torch.nan]] * 5))}
    targets[1] = Targets(torch.tensor([[0.0]] * 2), torch.tensor([[0.0], [1.0]]))
    targets[2] = Targets(torch.full((5, 1), torch.nan), torch.full((5, 1), torch.nan))
    learn = objective(config, targets)
    nn.init.normal_(learn.model.adapter().head.prefix.weight)
    whole = learn(collate(examples))
    alone = [learn(collate([example])) for example in examples]
    for name in ("loss", "labels", "spans"):
        close(whole[name], torch.stack([each[name] for each in alone]).mean())
    assert alone[2]["loss"] == 0
    close(whole["loss"], whole["labels"] + whole["spans"])
    whole["loss"].backward()
    assert learn.model.adapter().head.prefix.weight.grad is not None


def test_the_vocabulary_heads_learn_along_where_they_are_not_fitted() -> None:
    targets = {0: Targets(torch.ones(4, 2), torch.empty(4, 0))}
    batch = collate([Example(0, (), ((5, 6, 7, 8),))])
    learn = objective(TWO, targets, vocabulary_weight=0.5, candidates=0)
    nn.init.normal_(learn.model.adapter().head.prefix.weight)
    metrics = learn(batch)
    assert metrics["vocabulary"] > 0
    close(metrics["loss"], metrics["labels"] + 0.5 * metrics["vocabulary"])
    signal = learn.model(batch.input_ids).signals["guard"]
    close(metrics["vocabulary"], signal.logits.diff(dim=1).square().mean(), 1e-4)  # the heads begin at 0
    fitted = objective(TWO, targets)
    assert "vocabulary" not in fitted(batch)
    assert not any(parameter.requires_grad for parameter in fitted.model.adapter().head.vocabulary.parameters())


def test_the_identity_holds_the_labels() -> None:
    first = {0: Targets(torch.ones(4, 2), torch.empty(4, 0))}
    other = {0: Targets(torch.tensor([[1.0, 0.0]] * 4), torch.empty(4, 0))}
    assert objective(TWO, first).identity == objective(TWO, first, positions=3).identity
    assert objective(TWO, first).identity != objective(TWO, other).identity
    assert objective(TWO, first).identity != objective(TWO, first, balance=0.0).identity


@pytest.mark.parametrize("wrong", [{"balance": 2.0}, {"span_weight": -1.0}, {"vocabulary_weight": math.inf}])
def test_wrong_losses(wrong) -> None:
    refused(lambda: GuardTrainingConfig(**wrong), next(iter(wrong)))


# -- measures ----------------------------------------------------------------------------------------------------------

labelled = st.lists(st.tuples(st.sampled_from([0.1, 0.2, 0.5, 0.7, 0.9]), st.booleans()), min_size=2, max_size=30)


@given(labelled)
def test_measures_by_their_definitions(pairs) -> None:
    scores = torch.tensor([score for score, _ in pairs])
    truth = torch.tensor([held for _, held in pairs])
    wins = [(a > b) + (a == b) / 2 for a in scores[truth].tolist() for b in scores[~truth].tolist()]
    result = auc(scores, truth)
    assert math.isnan(result) if not wins else result == pytest.approx(sum(wins) / len(wins))
    levels = sorted(set(scores.tolist()), reverse=True)
    points = [(f1(scores >= level, truth), level) for level in levels]
    best = best_threshold(scores, truth)
    assert f1(scores >= best, truth) == pytest.approx(max(points)[0])
    if bool(truth.any()):
        recalls = [0.0] + [float((truth & (scores >= level)).sum() / truth.sum()) for level in levels]
        precisions = [float((truth & (scores >= level)).sum() / (scores >= level).sum()) for level in levels]
        steps = zip(recalls[1:], recalls, precisions, strict=False)
        area = sum((now - before) * precision for now, before, precision in steps)
        assert average_precision(scores, truth) == pytest.approx(area, abs=1e-6)


def test_alarms() -> None:
    values = torch.tensor([0.1, 0.8, 0.2, 0.7, 0.6])
    assert torch.equal(alarm_levels(values, 1, 1), values)
    close(alarm_levels(values, 2, 3), torch.tensor([0.0, 0.1, 0.2, 0.7, 0.6]))
    peaks = torch.tensor([0.9, 0.5, 0.3, 0.2])
    for rate, ringing in ((0.05, 0), (0.25, 1), (0.3, 1), (0.5, 2), (0.9, 3)):
        assert int((peaks >= alarm_at_rate(peaks, rate)).sum()) == ringing
    assert alarm_at_rate(torch.ones(3), 0.1) == 1.0
    assert int((torch.tensor([0.5, 0.5, 0.1]) >= alarm_at_rate(torch.tensor([0.5, 0.5, 0.1]), 0.4)).sum()) == 0


def test_overlaps_of_characters() -> None:
    assert character_f1(set(), set()) == 1.0
    assert character_f1({1}, set()) == character_f1(set(), {1}) == character_f1({1}, {2}) == 0.0
    assert character_f1({1, 2, 3}, {2, 3, 4, 5}) == pytest.approx(2 * 2 / 7)


def test_an_interval_leaves_out_draws_without_a_number() -> None:
    values = torch.arange(100.0)
    whole = interval(100, mean_of(values))
    assert interval(100, lambda rows: float(values[rows].mean()) if rows[0] > 50 else math.nan) == pytest.approx(
        whole, abs=1.5
    )
    assert all(map(math.isnan, interval(3, lambda rows: math.nan)))


# -- training ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def words(tmp_path_factory) -> Path:
    """Texts of letters: those with a j are offensive, from it on."""
    draw, path = random.Random(0), tmp_path_factory.mktemp("guard") / "words.jsonl"
    with path.open("w") as file:
        for number in range(120):
            letters = [draw.choice("abcdefgh") for _ in range(draw.randint(3, 8))]
            if number % 2:
                letters[draw.randrange(len(letters))] = "j"
            text = " ".join(letters)
            record: dict[str, Any] = {"text": text, "label": ("fine", "rude")[number % 2]}
            if number % 4 > 1:
                record = {"text": text, "spans": [[at, at + 1] for at, letter in enumerate(text) if letter == "j"]}
            file.write(json.dumps(record) + "\n")
    return path


LEARN = (
    "--span-delay",
    1,
    "--epochs",
    8,
    "--learning-rate",
    0.01,
    "--eval-fraction",
    0.3,
    "--harmless",
    "fine",
    *SHAPE,
)


def test_train_guard(answer, base, words, tmp_path) -> None:
    result = answer("train", "guard", "--base", base, "--data", words, "--out", tmp_path / "one", *LEARN, "--record")
    assert result["auc_100"] > 0.9
    assert result["auc_25"] <= result["auc_100"]
    assert result["span_f1"] > 0.9
    assert result["average_precision"] > 0.9
    assert result["f1"] > 0.9
    signal = read_config(tmp_path / "one").signal
    assert isinstance(signal, GuardConfig)
    assert (signal.labels, signal.harmless, signal.spans) == (("rude",), (), ("rude",))
    (calibration,) = signal.calibrations
    assert calibration.label == "rude"
    assert calibration.span is not None
    assert signal.word_shares("rude").keys() == {"j"}
    assert (signal.span_delay, calibration.span_share <= 0.95) == (1, True)
    card = (tmp_path / "one" / "README.md").read_text()
    assert "Labels: rude." in card
    assert signal.harmless_names == ("fine",)
    scored = answer("score", "--base", base, "--adapter", tmp_path / "one", "--data", words)  # it knows what is fine
    assert scored["auc"] > 0.9
    assert scored["span_f1"] > 0.9
    assert "| auc_50 |" in card
    # Started again it is done; without the recording it is the same up to the recording's precision.
    assert (
        answer("train", "guard", "--base", base, "--data", words, "--out", tmp_path / "one", *LEARN, "--record")
        == result
    )


def test_a_run_goes_on_and_knows_its_labels(answer, refusal, base, words, tmp_path) -> None:
    settings = ("train", "guard", "--base", base, "--data", words, "--out", tmp_path / "run", *LEARN, "--epochs", 1)
    answer(*settings)
    relabelled = tmp_path / "words.jsonl"
    relabelled.write_text(words.read_text().replace('"fine"', '"rude"', 1))
    other = [relabelled if part == words else part for part in settings]
    assert "with other labels" in refusal(*other)
    assert "--false-alarm-rate" not in refusal(*settings, "--balance", 0)
    assert "must be between 0 and 1" in refusal(*settings, "--false-alarm-rate", 1)


def test_data_that_cannot_teach(refusal, base, tmp_path) -> None:
    data = tmp_path / "data.jsonl"
    command = ("train", "guard", "--base", base, "--data", data, "--out", tmp_path / "run", *SHAPE)
    data.write_text("".join(json.dumps({"text": "a b", "label": "x"}) + "\n" for _ in range(9)))
    assert "--harmless" in refusal(*command)
    for where, words in ((0, "of 36 rows to train on"), (5, "of 4 rows to calibrate on")):  # row 0 is held out
        rows = [{"text": "a b", "label": int(n == where)} for n in range(40)]
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        assert f"{words}, none is with the label 'unsafe'" in refusal(*command)
    data.write_text(json.dumps({"text": "a b", "label": 1}) + "\n" + json.dumps({"label": 1}) + "\n")
    assert "row 2" in refusal(*command)


def test_exclusive_labels_are_learned(base, tmp_path) -> None:
    draw = random.Random(0)
    classes = {"h": "rude", "i": "hate", "j": "neither"}
    rows = [
        {"text": " ".join([*(draw.choice("abcdef") for _ in range(3)), letter]), "label": label}
        for letter, label in classes.items()
        for _ in range(30)
    ]
    data = tmp_path / "classes.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = GuardRecipe(str(data))
    run = Run(tmp_path / "out", TrainingConfig(epochs=8, batch_size=8, learning_rate=0.01), eval_fraction=0.3)
    torch.manual_seed(0)
    config = tiny_config(signal=GuardConfig(vocabulary_rank=2, hits=2, window=3))
    metrics = recipe.train(load_base(str(base)), load_tokenizer(str(base)), recipe.read(), config, run)
    assert metrics["auc_100"] > 0.9
    signal = read_config(tmp_path / "out").signal
    assert isinstance(signal, GuardConfig)
    assert set(signal.labels) == {"neither", "rude", "hate"}
    assert (signal.harmless, signal.hits, signal.window) == (("neither",), 2, 3)
    assert [each.label for each in signal.calibrations] == list(signal.offences)
    assert len(read_labelled_rows(data)) == 90

"""Two models into one contrast: what they say is written down as they say it, and the contrast learns to steer so."""

import random
from pathlib import Path

import pytest
import torch
from conftest import close, randomize, refused, tiny_base, tiny_config

from otterlm.decoding.steering import nucleus
from otterlm.model import OtterModel
from otterlm.signals.contrast.config import ContrastConfig
from otterlm.signals.contrast.experts_objective import ExpertsObjective
from otterlm.training.data.packing import Example, collate
from otterlm.training.sources import LiveBase, RecordedBase
from otterlm.training.teachers.experts import ExpertOpinions
from otterlm.training.trainer import TrainingConfig, train


def texts(count: int = 24) -> list[Example]:
    """Returns texts of 2 to 9 tokens."""
    draw = random.Random(0)
    return [
        Example(row, (), (tuple(draw.randrange(3, 97) for _ in range(draw.randint(2, 9))),)) for row in range(count)
    ]


def models():
    """Makes a base, and two that differ from it a little."""
    base, *sides = (tiny_base() for _ in range(3))
    for seed, side in enumerate(sides, start=1):
        other = tiny_base(seed=seed)
        with torch.no_grad():
            for mine, theirs in zip(side.parameters(), other.parameters(), strict=True):
                mine.add_(theirs, alpha=0.2)
    return base, *sides


def objective(folder, **settings) -> ExpertsObjective:
    """Makes an untrained contrast with the opinions of its experts."""
    base, *sides = models()
    opinions = ExpertOpinions(base, sides[0], sides[1], texts(), folder / "opinions.f32", batch_size=5)
    torch.manual_seed(0)
    otter = OtterModel(base, tiny_config(signal=ContrastConfig(rank=16)))
    return ExpertsObjective(otter, LiveBase(otter), opinions, **settings)


@torch.no_grad()
def test_opinions_are_what_the_models_say(tmp_path: Path) -> None:
    base, *sides = models()
    opinions = ExpertOpinions(base, sides[0], sides[1], texts(), tmp_path / "opinions.f32", batch_size=5)
    chosen = [texts()[7], texts()[2]]
    tokens, likely, difference = opinions.read(collate(chosen))
    for row, example in enumerate(chosen):
        ids = torch.tensor(example.branches)
        logits, expert, anti_expert = (model(ids).logits[0] for model in (base, *sides))
        order = logits.sort(dim=-1, descending=True)
        length = ids.shape[1]
        assert torch.equal(tokens[row, :length], order.indices)
        close(likely[row, :length], logits.log_softmax(dim=-1).gather(-1, order.indices), 1e-5)
        close(difference[row, :length], (expert - anti_expert).gather(-1, order.indices), 1e-4)


@torch.no_grad()
def test_the_loss_is_the_divergence_of_what_is_sampled(tmp_path: Path) -> None:
    learner = objective(tmp_path, alpha=1.5, top_p=0.8, temperature=0.7).eval()
    randomize(learner.model.adapter(), 5)
    batch = collate(texts()[:4])
    total = []
    for example in texts()[:4]:
        ids = torch.tensor(example.branches)
        output = learner.model(ids)
        logits = output.logits[0]
        (signal,) = output.signals.values()
        predicted = torch.cat([signal.difference(position) for position in range(ids.shape[1])])
        expert, anti_expert = (model(ids).logits[0] for model in models()[1:])
        inside = nucleus(logits, 0.8)
        wanted, actual = (
            ((logits + 1.5 * difference) / temperature).masked_fill(~inside, -torch.inf).log_softmax(dim=-1)
            for difference, temperature in ((expert - anti_expert, 0.7), (predicted, 1.0))
        )
        total += [(f[i].exp() * (f[i] - w[i])).sum() for w, f, i in zip(wanted, actual, inside, strict=True)]
    close(learner(batch)["loss"], torch.stack(total).mean(), 1e-4)


def test_training_steers_as_the_experts_do(tmp_path: Path) -> None:
    learner = objective(tmp_path)
    how = TrainingConfig(epochs=30, batch_size=8, learning_rate=1e-2, patience=99)
    metrics = train(learner, texts(), texts(), how, tmp_path / "run")
    assert metrics["loss"] < metrics["base"] / 3


@torch.no_grad()
def test_what_the_experts_said_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = objective(tmp_path)
    before = (tmp_path / "opinions.f32").read_bytes()
    monkeypatch.setattr("otterlm.training.teachers.experts._compare", None)
    assert objective(tmp_path).identity == learner.identity  # the models are not asked again
    assert (tmp_path / "opinions.f32").read_bytes() == before
    base, *sides = models()
    path = tmp_path / "opinions.f32"
    one, other = sides
    refused(lambda: ExpertOpinions(base, other, one, texts(), path), "opinions.json", "other models:")
    refused(lambda: ExpertOpinions(base, one, other, texts()[1:], path), "opinions.json", "data (24 there, 23 now)")
    assert path.read_bytes() == before


@torch.no_grad()
def test_a_recording_gives_the_same_loss(tmp_path: Path) -> None:
    learner = objective(tmp_path)
    batch = collate(texts()[:6])
    live = learner(batch)["loss"]
    learner.source = RecordedBase(learner.model, texts(), tmp_path)
    close(learner(batch)["loss"], live, 2e-2)


def test_models_of_other_vocabularies_are_refused(tmp_path: Path) -> None:
    base, expert, _ = models()
    refused(
        lambda: ExpertOpinions(base, expert, tiny_base(vocab_size=50), texts(), tmp_path / "o.f32"),
        "one vocabulary",
        "[97, 97, 50]",
    )


def test_a_run_with_other_settings_is_refused(tmp_path: Path) -> None:
    how = TrainingConfig(epochs=1, batch_size=8)
    train(objective(tmp_path), texts(), texts(), how, tmp_path / "run")
    refused(lambda: train(objective(tmp_path, alpha=1.0), texts(), texts(), how, tmp_path / "run"), "checkpoint")

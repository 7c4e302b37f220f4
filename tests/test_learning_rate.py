"""The learning rate that suits a base: as it was beside small states, less beside large ones."""

from pathlib import Path

import pytest
import torch
from conftest import tiny_base, tiny_config
from training_runs import HELD_OUT, TRAIN, new_objective

from otterlm.model import OtterModel
from otterlm.signals.reward.objective import RewardObjective
from otterlm.training.config import RATE, TrainingConfig
from otterlm.training.learning_rate import suited_to
from otterlm.training.recipes import Run
from otterlm.training.sources import LiveBase
from otterlm.training.trainer import train


def larger(times: float, taps: str | None = None) -> RewardObjective:
    """Returns an untrained adapter of a base whose norms make states so many times as large."""
    torch.manual_seed(0)
    base = tiny_base(num_hidden_layers=2)
    for name, weight in base.named_parameters():
        if "layernorm" in name:
            weight.data.mul_(times)
    model = OtterModel(base, tiny_config(taps=taps))
    return RewardObjective(model, LiveBase(model), new_objective().config)


def chosen(objective: RewardObjective) -> float | None:
    """Returns the learning rate that is chosen for an objective."""
    return suited_to(objective, TrainingConfig()).learning_rate


def test_small_states_have_the_usual_rate() -> None:
    assert chosen(larger(1)) == RATE
    assert chosen(larger(1, "edge")) == RATE
    assert suited_to(torch.nn.Linear(1, 1), TrainingConfig()).learning_rate == RATE


def test_the_rate_falls_as_states_grow() -> None:
    ten, hundred = chosen(larger(100)), chosen(larger(1000))
    assert ten is not None
    assert hundred is not None
    assert RATE > ten == pytest.approx(10 * hundred)
    # At a block's edge the stream has norms of its own, and the base's do not matter.
    assert chosen(larger(1000, "edge")) == RATE


def test_a_chosen_rate_is_taken() -> None:
    assert suited_to(larger(1000), TrainingConfig(learning_rate=0.5)).learning_rate == 0.5


def test_a_run_says_its_rate(tmp_path: Path) -> None:
    """A recipe and the training loop choose the same, and the checkpoint's identity holds it."""
    objective = larger(1000)
    model = objective.model
    run = Run(tmp_path, TrainingConfig(epochs=1, batch_size=8)).begin(
        model.base_model, model.adapter().config, RewardObjective
    )
    assert run.training == suited_to(objective, TrainingConfig(epochs=1, batch_size=8))
    train(objective, TRAIN, HELD_OUT, TrainingConfig(epochs=1, batch_size=8), tmp_path, settings={"record": False})
    run.prepare(objective, TRAIN, HELD_OUT)  # the checkpoint is of this run


def test_the_first_step_is_no_leap() -> None:
    """That is what the rate is chosen for: the usual one changes what a stream computes from large states at once."""

    def moved(config: TrainingConfig) -> float:
        model = larger(1000).model
        stream, ids = model.adapter().stream, torch.tensor([[5, 6, 7, 8]])
        before = model(ids).signals["reward"].state[..., -8:]  # [1, 4, d']
        before.square().sum().backward()
        torch.optim.AdamW(stream.parameters(), lr=config.peak).step()
        after = model(ids).signals["reward"].state[..., -8:]
        return float((after - before).detach().norm() / before.detach().norm())

    assert moved(suited_to(larger(1000), TrainingConfig())) < moved(TrainingConfig()) / 5

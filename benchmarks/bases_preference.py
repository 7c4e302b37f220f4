"""Measures preference accuracy on a base: an adapter, the best probe, a LoRA reward model. `benchmarks/bases.py` uses
it.

The adapter and LoRA learn from the same seven eighths of the pairs that are not held out; the other eighth decides
which of their weights are best.
"""

import argparse
import itertools
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from bases_reading import best_probe, read_once, read_states
from bases_rows import at_once, conditions, folder, load, make_row, rate, shape
from torch import Tensor
from transformers import PreTrainedModel

from otterlm.bases import load_tokenizer
from otterlm.identity import of_config, of_data, of_weights
from otterlm.model import OtterModel
from otterlm.signals.reward.config import RewardConfig
from otterlm.signals.reward.losses import final_rewards
from otterlm.signals.reward.objective import RewardObjective, RewardTrainingConfig, start_from_probe
from otterlm.training.config import TrainingConfig
from otterlm.training.data.packing import CHOSEN, REJECTED, Batch, Example, collate, length_buckets
from otterlm.training.data.rows import hold_out, read_rows
from otterlm.training.data.tokens import Limits, tokenize
from otterlm.training.sources import LiveBase, RecordedBase, Source, read_batch
from otterlm.training.teachers.reward_model import SeparateRewardModel
from otterlm.training.trainer import train

LIMITS = Limits(prompt=96, response=64)
METHODS = ("otter", "probe", "lora")


def preference(arguments: argparse.Namespace) -> None:
    """Makes the rows of preference accuracy."""
    base, tokenizer = load(arguments), load_tokenizer(arguments.base)
    for spec in arguments.data:
        name, _, file = spec.rpartition("=")
        rows = read_rows(file)[: arguments.rows]
        pairs = Pairs(arguments, base, name, tokenize(rows, tokenizer, LIMITS))
        for seed, method in itertools.product(arguments.seeds, arguments.methods):
            pairs.make_row(method, seed, hold_out(rows, 0.2, seed))


class Pairs:
    """The pairs of one set are what methods are compared on.

    Args:
        arguments: of the command.
        base: the base.
        name: of the set.
        examples: all its pairs.
    """

    def __init__(
        self, arguments: argparse.Namespace, base: PreTrainedModel, name: str, examples: list[Example]
    ) -> None:
        self._arguments, self._base, self._name, self._examples = arguments, base, name, examples
        self._config = shape(arguments, RewardConfig())

    def make_row(self, method: str, seed: int, held: set[int]) -> None:
        """Makes the row of one method and seed, unless it is there."""
        arguments = self._arguments
        fixed = {"task": "preference", "data": self._name, "method": method, "seed": seed, "base": arguments.base}
        depends = {"base": of_weights(self._base), "data": of_data(self._examples), "held": sorted(held)}
        depends |= conditions(arguments)
        if method == "otter":
            depends |= {"adapter": of_config(self._config), "epochs": arguments.epochs}
            depends |= rate(self._base, self._config)
        elif method == "lora":
            depends |= {"rank": arguments.rank, "epochs": arguments.lora_epochs}

        def row() -> dict[str, Any]:
            right = self.judge(method, seed, held)
            size = sum(parameter.numel() for parameter in self._base.parameters())
            return {**fixed, "parameters": size, "accuracy": sum(right) / len(right), "right": right}

        make_row(folder(arguments) / "rows" / f"preference-{self._name}-{method}-{seed}.json", fixed | depends, row)

    def judge(self, method: str, seed: int, held: set[int]) -> list[bool]:
        """Trains one method on the pairs that are not held out. Returns which of the others it ranks right."""
        learned = [index for index, each in enumerate(self._examples) if each.row not in held]
        tested = [index for index, each in enumerate(self._examples) if each.row in held]
        if method == "probe":
            block, right = best_probe(self._states, learned, tested, seed)
            print(f"the best probe reads block {block}")
            return right
        fitted, measured = ([self._examples[index] for index in part] for part in (learned, tested))
        out, base = folder(self._arguments) / f"{self._name}-{method}-{seed}", self._base
        if method == "lora":
            rival = fit_lora(base, fitted, seed, out, self._arguments)
            return ranked_right(lambda batch: rival.read(**batch.inputs(base.dtype)), measured, base)
        model = self._new_model()
        source: Source = LiveBase(model) if self._arguments.live else self._recorded(model)[0]
        fit_otter(model, source, fitted, seed, out, self._arguments.epochs)
        model.eval()
        return ranked_right(lambda batch: read_batch(model, source, batch, "reward").prefix, measured, base)

    def _new_model(self) -> OtterModel:
        # Of a base of less precision small steps of AdamW would be rounded away.
        return OtterModel(self._base, self._config, dtype=torch.promote_types(self._base.dtype, torch.float32)).train()

    def _recorded(self, model: OtterModel) -> tuple[RecordedBase, Tensor]:
        return read_once(model, self._examples, folder(self._arguments) / f"{self._name}-recording")

    @cached_property
    def _states(self) -> Tensor:
        """Returns the base's states after every block at the ends of the texts, `[2, N, blocks, d]`."""
        model = self._new_model()
        return read_states(model, self._examples) if self._arguments.live else self._recorded(model)[1]


def eighth_and_rest(learned: Sequence[Example], seed: int) -> tuple[list[Example], list[Example]]:
    """Splits what is learned from: an eighth decides which weights are best, the others are fitted to."""
    order = torch.randperm(len(learned), generator=torch.Generator().manual_seed(seed)).tolist()
    stops, fitted = order[: len(order) // 8], order[len(order) // 8 :]
    return [learned[index] for index in stops], [learned[index] for index in fitted]


def fit_otter(
    model: OtterModel, source: Source, learned: Sequence[Example], seed: int, out: Path, epochs: int
) -> dict[str, float]:
    """Trains an adapter on pairs."""
    torch.manual_seed(seed)
    objective = RewardObjective(model, source, RewardTrainingConfig())
    stops, fitted = eighth_and_rest(learned, seed)
    start_from_probe(objective, fitted, at_once(model.base_model))
    how = TrainingConfig(epochs=epochs, batch_size=16, evaluations_per_epoch=4, patience=6, seed=seed)
    return train(objective, fitted, stops, how, out)


def fit_lora(
    base: PreTrainedModel, learned: Sequence[Example], seed: int, out: Path, arguments: argparse.Namespace
) -> SeparateRewardModel:
    """Trains a reward model by LoRA on pairs, beside the base's own weights."""
    torch.manual_seed(seed)
    model = SeparateRewardModel.lora(base, arguments.rank, recompute=False, shared=True)
    stops, fitted = eighth_and_rest(learned, seed)
    how = TrainingConfig(
        epochs=arguments.lora_epochs,
        batch_size=16,
        learning_rate=2e-4,
        warmup=0.1,
        evaluations_per_epoch=2,
        patience=6,
        seed=seed,
        gradient_accumulation=arguments.lora_parts,
    )
    train(model, fitted, stops, how, out)
    return model.eval()


@torch.no_grad()
def ranked_right(rewards: Callable[[Batch], Tensor], examples: Sequence[Example], base: PreTrainedModel) -> list[bool]:
    """Returns whether the chosen text of each pair has the higher reward, in the order of `examples`."""
    right: dict[int, bool] = {}
    for group in length_buckets(examples, at_once(base)):
        batch = collate(group).to(base.device)
        values = rewards(batch)  # [B, T]
        chosen, rejected = (final_rewards(values, batch.segments, side) for side in (CHOSEN, REJECTED))
        wins = (chosen > rejected).tolist()
        right |= {each.row: win for each, win in zip(group, wins, strict=True)}
    return [right[each.row] for each in examples]

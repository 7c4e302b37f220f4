"""Trains an adapter with Transformers' `Trainer`, for programs that have its callbacks, schedules or launchers."""

import os
from collections.abc import Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from otterlm import adapter_files
from otterlm.families.facts import decoder_config
from otterlm.model import OtterModel
from otterlm.training.data.packing import Batch, Example, collate


class AdapterTrainer(Trainer):
    """The trainer is Transformers' own, whose checkpoints hold an adapter folder where others hold a whole model.

    Optimizer, schedule, logging, evaluation and resuming are those of `Trainer`.

    Args:
        objective: what is learned, such as `otterlm.signals.reward.objective.RewardObjective`, with `model`, an
            `OtterModel`, and `name`, the adapter's.
        args: `remove_unused_columns` has no meaning here, as examples have no columns.
        train_dataset, eval_dataset: examples, see `otterlm.training.data.encoding.stored_tokens`.
        pad_token_id: any token id; padding is masked.
        others: as for `Trainer`.
    """

    def __init__(
        self,
        objective: nn.Module,
        args: TrainingArguments,
        train_dataset: Sequence[Example] | None = None,
        eval_dataset: Sequence[Example] | None = None,
        pad_token_id: int = 0,
        **others: Any,
    ) -> None:
        super().__init__(
            model=_OfTensors(objective),
            args=args,
            data_collator=partial(_tensors, pad_token_id=pad_token_id),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            **others,
        )

    @property
    def _otter(self) -> tuple[OtterModel, str]:
        objective: Any = self.accelerator.unwrap_model(self.model).objective
        return objective.model, objective.name

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """Writes the adapter's folder. `Trainer` adds the optimizer's and its own state to that of a checkpoint."""
        folder = Path(output_dir or self.args.output_dir)
        model, name = self._otter
        model.save_pretrained(folder, name, is_main_process=self.args.should_save)
        if self.args.should_save:
            torch.save(self.args, os.path.join(folder, "training_args.bin"))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Reads the adapter of a checkpoint."""
        otter, name = self._otter
        size = decoder_config(otter.base_model).vocab_size
        adapter_files.fill(Path(resume_from_checkpoint) / adapter_files.WEIGHTS, otter.adapter(name), size)

    def _load_best_model(self) -> None:
        """Reads the adapter of the best checkpoint."""
        self._load_from_checkpoint(str(self.state.best_model_checkpoint))


class _OfTensors(nn.Module):
    """Calls an objective with the tensors of a batch, as `Trainer` does, moves and counts them."""

    accepts_loss_kwargs = False

    def __init__(self, objective: nn.Module) -> None:
        super().__init__()
        self.objective = objective

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        segments: Tensor,
        parents: Tensor,
        scores: Tensor,
        labels: Tensor,
        rows: Tensor,
        pairs: bool,
    ) -> dict[str, Tensor]:
        """Returns the objective's loss and metrics; arguments are the fields of `Batch`."""
        batch = Batch(input_ids, position_ids, segments, parents, scores, labels, rows, pairs)
        metrics: dict[str, Tensor] = self.objective(batch)
        return metrics


def _tensors(examples: Sequence[Example], pad_token_id: int) -> dict[str, Any]:
    batch = collate(examples, pad_token_id)
    return {field.name: getattr(batch, field.name) for field in fields(batch)}

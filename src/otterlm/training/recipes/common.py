"""What all recipes share: a run's settings, the split, the source of intermediates, and the card."""

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from otterlm.bases import check_context
from otterlm.config import OtterConfig
from otterlm.errors import OtterError
from otterlm.files import make_folder
from otterlm.identity import identity, of_config, of_weights
from otterlm.model import OtterModel
from otterlm.training.checkpoint import CHECKPOINT, check_checkpoint
from otterlm.training.packing import Example
from otterlm.training.rows import check_fraction
from otterlm.training.sources import RecordedBase
from otterlm.training.trainer import TrainingConfig, known_identity, run_identity, train


@dataclass(frozen=True, slots=True)
class Run:
    """How and where an adapter is trained.

    Attributes:
        out: folder for the adapter, the metrics and the checkpoint; a checkpoint found there is gone on with.
        training: how.
        eval_fraction: about how much of the data is held out to decide when to stop.
        record: keep the base's intermediates on disk (`out/recording`), so that later epochs do not run it.
        save_dtype: of the saved tensors.
    """

    out: Path
    training: TrainingConfig = field(default_factory=TrainingConfig)
    eval_fraction: float = 0.1
    record: bool = False
    save_dtype: torch.dtype = torch.bfloat16

    @property
    def resumes(self) -> bool:
        """Whether there is a checkpoint to go on with."""
        return (self.out / CHECKPOINT).exists()

    @property
    def _settings(self) -> dict[str, Any]:
        return {"record": self.record}  # what is played back is rounded to bf16

    def begin(self, base: PreTrainedModel, config: OtterConfig, objective: type[nn.Module]) -> None:
        """Checks that the folder can be of this run, as far as that is known before the run has made its data.

        Raises:
            OtterError: it holds a checkpoint of another base, adapter, objective or other settings, or it cannot be
                written.
        """
        make_folder(self.out)
        known = known_identity(objective, self.training, self._settings)
        parts = {"base": of_weights(base), "adapter": of_config(config), **known}
        check_checkpoint(self.out / CHECKPOINT, identity("checkpoint", **parts), partial=True)

    def prepare(self, objective: Any, train_examples: Sequence[Example], eval_examples: Sequence[Example]) -> None:
        """Gives an objective its source, once the folder is known to be of this run: a recording is made or found.

        Raises:
            OtterError: the folder holds a checkpoint or a recording of another run.
        """
        this = run_identity(objective, train_examples, eval_examples, self.training, self._settings)
        check_checkpoint(self.out / CHECKPOINT, this)
        if self.record:
            examples = sorted([*train_examples, *eval_examples], key=lambda example: example.row)
            with PartialState().main_process_first():
                objective.source = RecordedBase(objective.model, examples, self.out / "recording")

    def held_out(self, population: Sequence[int]) -> set[int]:
        """A random part of `population`, the same for the same seed.

        Raises:
            OtterError: the fraction is out of range.
        """
        check_fraction(self.eval_fraction)
        count = round(self.eval_fraction * len(population))
        return set(random.Random(self.training.seed).sample(population, count))

    def split(
        self, examples: Sequence[Example], base: PreTrainedModel, held: set[int] | None = None
    ) -> tuple[list[Example], list[Example]]:
        """Examples to train on and to evaluate on: those of the held-out rows, by default a random part.

        Raises:
            OtterError: one of the two is empty, the fraction is out of range, or a text exceeds the base's context.
        """
        check_context(base.config, max(example.longest for example in examples))
        if held is None:
            held = self.held_out([example.row for example in examples])
        train_examples = [example for example in examples if example.row not in held]
        eval_examples = [example for example in examples if example.row in held]
        if not train_examples or not eval_examples:
            raise OtterError(f"{len(examples)} rows are too few to train on and hold out a part of")
        return train_examples, eval_examples

    def train(
        self,
        objective: nn.Module,
        train_examples: Sequence[Example],
        eval_examples: Sequence[Example],
        tokenizer: PreTrainedTokenizerBase,
    ) -> dict[str, float]:
        """See `otterlm.training.trainer.train`."""
        pad = tokenizer.pad_token_id or 0
        return train(objective, train_examples, eval_examples, self.training, self.out, pad, self._settings)

    def save(
        self, model: OtterModel, title: str, data: str, metrics: dict[str, float], settings: dict[str, Any]
    ) -> None:
        """Saves the adapter with a card.

        Args:
            model: with the adapter.
            title: of the card, such as `A reward`.
            data: a sentence on what it was trained on.
            metrics: of the saved weights on the rows held out.
            settings: what else the card should list.
        """
        if not PartialState().is_main_process:
            return
        measured = "\n".join(f"| {name} | {value:.4f} |" for name, value in sorted(metrics.items()) if name != "step")
        used = "\n".join(f"| {name} | {value} |" for name, value in (asdict(self.training) | settings).items())
        card = (
            f"# {title} for {model.base_model.config._name_or_path}\n\n"
            "An Otter adapter: inserted parameters that predict beside every token and leave the logits as they are,\n"
            f"bit for bit (arXiv 2408.10764).\n\n{data} On the rows held out to decide when to stop:\n\n"
            f"| metric | value |\n|---|---|\n{measured}\n\n| setting | value |\n|---|---|\n{used}\n"
        )
        model.save_pretrained(self.out, card=card, dtype=self.save_dtype)


def on_device(base: PreTrainedModel) -> PreTrainedModel:
    """The base on the device this process trains on."""
    return base.to(PartialState().device)

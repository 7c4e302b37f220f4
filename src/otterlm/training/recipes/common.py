"""Defines what all recipes share: a run's settings, the split, the source of intermediates, and the card."""

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from otterlm.adapter import resolved
from otterlm.adapter_files import HUB_ID
from otterlm.bases import check_context, parse_dtype
from otterlm.config import OtterConfig
from otterlm.detection import recognize
from otterlm.errors import OtterError, reason
from otterlm.families.parts import device_of
from otterlm.files import make_folder
from otterlm.identity import identity, of_config, of_weights
from otterlm.model import OtterModel
from otterlm.settings import setting
from otterlm.training.checkpoint import CHECKPOINT, check_checkpoint
from otterlm.training.data.packing import Example
from otterlm.training.data.rows import check_fraction
from otterlm.training.data.stored_examples import by_row, longest_of, select
from otterlm.training.learning_rate import suited
from otterlm.training.processes import this_process
from otterlm.training.sharding import shard_base
from otterlm.training.sources import LiveBase, RecordedBase
from otterlm.training.trainer import TrainingConfig, known_identity, run_identity, train


@dataclass(frozen=True, slots=True)
class Run:
    """A run says how and where an adapter is trained.

    Attributes:
        out: folder for the adapter, the metrics and the checkpoint; the run resumes from a checkpoint there.
        training: the settings of the training loop.
        eval_fraction: about how much of the data is held out to decide when to stop.
        record: store the base's intermediates on disk (`out/recording`), so that later epochs do not run it.
        save_dtype: of the saved tensors.
        license: of the adapter, as the hub names it.
        shard: split the base over the processes, see `otterlm.training.sharding`.
    """

    out: Path = setting(help="Folder for the adapter, its metrics and its checkpoint.")
    training: TrainingConfig = field(default_factory=TrainingConfig)
    eval_fraction: float = setting(0.1, "Part of the data held out to decide when to stop.", advanced=True)
    record: bool = setting(
        False, "Keep the base's intermediates on disk, so that only the first epoch runs it.", advanced=True
    )
    save_dtype: str = setting(
        "bfloat16", "Precision of the saved tensors: float32, bfloat16 or float16.", advanced=True
    )
    shard: bool = setting(False, "Split the base over the processes, for one that no GPU holds.", advanced=True)
    license: str | None = setting(None, "License of the adapter, for its card, such as apache-2.0.", advanced=True)

    def __post_init__(self) -> None:
        parse_dtype(self.save_dtype, "--save-dtype")
        if self.shard and self.record:
            self.needs_whole_base("--record has the base read all data first")

    @property
    def resumes(self) -> bool:
        """Returns whether there is a checkpoint to resume from."""
        return (self.out / CHECKPOINT).exists()

    @property
    def _settings(self) -> dict[str, Any]:
        return {"record": self.record}  # recorded intermediates are rounded to bf16

    def begin(self, base: PreTrainedModel, config: OtterConfig, objective: type[nn.Module]) -> "Run":
        """Checks that the folder can belong to this run, as far as that is known before the run has made its data.

        Returns:
            The run, with a learning rate that suits the base.

        Raises:
            OtterError: it holds a checkpoint of another base, adapter, objective or other settings, or it cannot be
                written.
        """
        make_folder(self.out)
        config, family = resolved(config, recognize(base))
        training = suited(self.training, base, family, config.layers)
        known = known_identity(objective, training, self._settings)
        parts = {"base": of_weights(base), "adapter": of_config(config), **known}
        check_checkpoint(self.out / CHECKPOINT, identity("checkpoint", **parts), partial=True)
        return replace(self, training=training)

    def prepare(self, objective: Any, train_examples: Sequence[Example], eval_examples: Sequence[Example]) -> None:
        """Gives an objective its source, if it is not the base that holds everything, after a check of the folder.

        Raises:
            OtterError: the folder holds a checkpoint or a recording of another run.
        """
        this = run_identity(objective, train_examples, eval_examples, self.training, self._settings)
        check_checkpoint(self.out / CHECKPOINT, this)
        again = self.training.gradient_checkpointing
        if self.record:
            examples = by_row(train_examples, eval_examples)
            with this_process().main_process_first():
                objective.source = RecordedBase(objective.model, examples, self.out / "recording", again=again)
        elif again:
            objective.source = LiveBase(objective.model, again)

    def needs_whole_base(self, why: str) -> None:
        """Checks that the base is whole, for what one process does with it while others wait.

        Raises:
            OtterError: it is split over the processes; the message begins with `why`.
        """
        if self.shard:
            raise OtterError(f"{why}, which one process does, and --shard splits the base over all: leave out one")

    def model(self, base: PreTrainedModel, config: OtterConfig) -> OtterModel:
        """Wraps the base with a new adapter, on this process's device or split over all.

        What is inserted is float32 also beside a base of less precision, where small steps of AdamW would be rounded
        away.
        """
        dtype = torch.promote_types(base.dtype, torch.float32)
        if self.shard:
            return shard_base(OtterModel(base, config, dtype=dtype))
        return OtterModel(on_device(base), config, dtype=dtype)

    def held_out(self, population: Sequence[int]) -> set[int]:
        """Returns a random part of `population`, the same for the same seed.

        Raises:
            OtterError: the fraction is out of range.
        """
        check_fraction(self.eval_fraction)
        count = round(self.eval_fraction * len(population))
        return set(random.Random(self.training.seed).sample(population, count))

    def split(
        self, examples: Sequence[Example], base: PreTrainedModel, held: set[int] | None = None
    ) -> tuple[Sequence[Example], Sequence[Example]]:
        """Splits examples into those to train on and those of the held-out rows, by default a random part.

        Raises:
            OtterError: one of the two is empty, the fraction is out of range, or a text exceeds the base's context.
        """
        check_context(base.config, longest_of(examples))
        if held is None:
            held = self.held_out([example.row for example in examples])
        train_examples = select(examples, lambda row: row not in held)
        eval_examples = select(examples, held.__contains__)
        if not train_examples or not eval_examples:
            raise OtterError(
                f"too few rows: of {len(examples)}, {len(train_examples)} are to train on and {len(eval_examples)} to "
                f"evaluate on (eval_fraction {self.eval_fraction:g}): add rows, or change the fraction"
            )
        return train_examples, eval_examples

    def train(
        self,
        objective: nn.Module,
        train_examples: Sequence[Example],
        eval_examples: Sequence[Example],
        tokenizer: PreTrainedTokenizerBase,
    ) -> dict[str, float]:
        """Trains an objective, see `otterlm.training.trainer.train`."""
        pad = tokenizer.pad_token_id or 0
        return train(objective, train_examples, eval_examples, self.training, self.out, pad, self._settings)

    def save(
        self,
        model: OtterModel,
        title: str,
        data: str,
        metrics: dict[str, float],
        settings: dict[str, Any],
        sources: Sequence[object] = (),
    ) -> None:
        """Saves the adapter with a card.

        Args:
            model: with the adapter.
            title: of the card, such as `A reward`.
            data: a sentence on what it was trained on.
            metrics: of the saved weights on the held-out rows.
            settings: more rows for the card's table.
            sources: of the data; the hub shows those that are its own datasets.
        """
        if not this_process().is_main_process:
            return
        metrics = {name: value for name, value in sorted(metrics.items()) if name != "step"}
        measured = "\n".join(f"| {name} | {value:.4f} |" for name, value in metrics.items())
        settings = asdict(self.training) | {"taps": model.adapter().config.taps} | settings
        used = "\n".join(f"| {name} | {value} |" for name, value in settings.items())
        card = (
            f"# {title} for {model.base_model.config._name_or_path}\n\n"
            "An Otter adapter: inserted parameters that predict beside every token and leave the logits as they are,\n"
            f"bit for bit (arXiv 2408.10764).\n\n{data} On the rows held out to decide when to stop:\n\n"
            f"| metric | value |\n|---|---|\n{measured}\n\n| setting | value |\n|---|---|\n{used}\n"
        )
        names = [source for source in sources if isinstance(source, str)]
        known = [name for name in names if HUB_ID.fullmatch(name) and not Path(name).exists()]
        metadata = {"license": self.license, "datasets": known or None, "metrics": list(metrics) or None}
        metadata = {name: value for name, value in metadata.items() if value is not None}
        model.save_pretrained(self.out, card=card, dtype=parse_dtype(self.save_dtype), card_metadata=metadata)


def use_device(device: torch.device) -> None:
    """Makes a device the one that this process trains on, before anything is trained.

    Raises:
        OtterError: there are several processes, each with its own device.
    """
    state = PartialState(cpu=device.type == "cpu")
    if state.num_processes > 1:
        raise OtterError(f"--device {device} is of one process: of several, accelerate gives each its own device")
    if device.type == "cuda":
        if device.index is None:  # set_device takes no device without an index
            device = torch.device("cuda", torch.cuda.current_device())
        torch.cuda.set_device(device)
    state.device = device


def on_device(base: PreTrainedModel) -> PreTrainedModel:
    """Moves the base to this process's device. One that is dispatched over devices and disk stays as it is.

    Raises:
        OtterError: it computes elsewhere and cannot be moved.
    """
    device = this_process().device
    computes = device_of(base.get_input_embeddings())
    if computes == device:
        return base
    try:
        return base.to(device)
    except (RuntimeError, ValueError, NotImplementedError) as error:
        raise OtterError(
            f"the base computes on {computes} and training runs on {device}, but it cannot be moved "
            f"({reason(error)}): load it with device_map={{'': '{device}'}}"
        ) from error

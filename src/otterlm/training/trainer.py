"""Runs the training loop, the same for every signal: frozen base, deterministic order, exact resume.

The order of the data is a function of the seed and the epoch, dropout a function of the seed and the step, so a run
that is killed and started again ends with the weights of one that was not.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from otterlm.errors import OtterError, reason
from otterlm.files import hold
from otterlm.identity import Identity, identity, of_data
from otterlm.progress import bar
from otterlm.training.checkpoint import CHECKPOINT, load_checkpoint, save_checkpoint, trainable
from otterlm.training.config import MixedPrecision
from otterlm.training.config import TrainingConfig as TrainingConfig  # its former module is this one
from otterlm.training.data.packing import Example, collate, length_buckets
from otterlm.training.learning_rate import suited_to
from otterlm.training.log import Log
from otterlm.training.processes import this_process
from otterlm.training.sharding import leave_to_themselves, sharded_names
from otterlm.training.step import DIVERGED, set_learning_rate, take_step


@dataclass(slots=True)
class _Progress:
    """The progress of a run is saved with every checkpoint."""

    step: int = 0
    best: dict[str, float] = field(default_factory=lambda: {"loss": math.inf, "step": 0})
    stale: int = 0
    finished: bool = False


def train(
    objective: nn.Module,
    train_examples: Sequence[Example],
    eval_examples: Sequence[Example],
    config: TrainingConfig,
    out: Path,
    pad_token_id: int = 0,
    settings: Mapping[str, Any] | None = None,
) -> dict[str, float]:
    """Trains the parameters of `objective` that require gradients and leaves the best ones in it.

    Args:
        objective: called with a `Batch`; returns a dict of scalar tensors, means over the batch, with `loss` in it. Its
            attribute `identity`, if it has one, holds what the run depends on beside the other arguments.
        train_examples: to learn from.
        eval_examples: to decide when to stop and which weights are best.
        config: the settings.
        out: folder for `metrics.jsonl`, `tensorboard/` and `checkpoint.safetensors`. A run resumes from a checkpoint
            there.
        pad_token_id: any token id; padding is masked.
        settings: what else the checkpoint must agree with.

    Returns:
        The metrics of the best weights on `eval_examples`.

    Raises:
        OtterError: the loss is not finite, the checkpoint belongs to another run, another process trains in `out`, or
            nothing can be written.
    """
    if not trainable(objective):
        raise OtterError("nothing to train: no parameter requires a gradient")
    if not train_examples or not eval_examples:
        raise OtterError("no examples to train on or to evaluate on")
    config = suited_to(objective, config)
    identity = run_identity(objective, train_examples, eval_examples, config, settings)
    loop = _Loop(objective, train_examples, eval_examples, config, out, pad_token_id, identity)
    with hold(loop.checkpoint) if loop.accelerator.is_main_process else nullcontext():
        loop.run()
    loop.accelerator.wait_for_everyone()
    return loop.progress.best


def run_identity(
    objective: nn.Module,
    train_examples: Sequence[Example],
    eval_examples: Sequence[Example],
    config: TrainingConfig,
    settings: Mapping[str, Any] | None = None,
) -> Identity:
    """Returns the identity of a run, see `otterlm.identity`. Two runs with one identity take the same steps."""
    data = {"data": of_data(train_examples), "held_out": of_data(eval_examples)}
    parts = getattr(objective, "identity", {}) | known_identity(type(objective), config, settings) | data
    return identity("checkpoint", **parts)


def known_identity(
    objective: type[nn.Module], config: TrainingConfig, settings: Mapping[str, Any] | None = None
) -> Identity:
    """Returns the parts of a run's identity that are known before its data are made.

    How often a checkpoint is made changes no step, nor does what is computed again, so they are not among them. Nor are
    settings that are as former versions had them, whose checkpoints go on.
    """
    without = ("checkpoint_every", "gradient_checkpointing")
    how = {name: value for name, value in asdict(config).items() if name not in without}
    for name, former in (("gradient_accumulation", 1), ("mixed_precision", "auto")):
        if how[name] == former:
            del how[name]
    return {"objective": objective.__name__, **how, **(settings or {})}


class _Loop:
    """The loop holds the state of one run and takes its steps."""

    def __init__(
        self,
        objective: nn.Module,
        train_examples: Sequence[Example],
        eval_examples: Sequence[Example],
        config: TrainingConfig,
        out: Path,
        pad_token_id: int,
        identity: Identity,
    ) -> None:
        self.accelerator = _accelerator(config.mixed_precision)
        self.checkpoint = out / CHECKPOINT
        self.progress = _Progress()
        self._names = trainable(objective)
        self._optimizer = torch.optim.AdamW(self._names.values(), lr=config.peak, weight_decay=config.weight_decay)
        if split := sharded_names(objective):
            leave_to_themselves(objective, split)
        self._together = bool(split)
        self._objective, self._wrapped = objective, self.accelerator.prepare(objective)
        self._train_examples, self._eval_examples = train_examples, eval_examples
        self._config, self._pad_token_id, self._identity = config, pad_token_id, identity
        self._batches_per_epoch = math.ceil(len(train_examples) / config.batch_size)
        self._total = self._batches_per_epoch * config.epochs
        self._evaluate_every = max(1, self._batches_per_epoch // config.evaluations_per_epoch)
        self._best = self._copied()

    def _copied(self) -> dict[str, Tensor]:
        return {name: parameter.detach().clone() for name, parameter in self._names.items()}

    def run(self) -> None:
        """Resumes from the checkpoint, if there is one, and leaves the best weights in the objective."""
        main = self.accelerator.is_main_process
        if self.checkpoint.exists():
            self._best, saved = load_checkpoint(self.checkpoint, self._objective, self._optimizer, self._identity)
            self.progress = _Progress(**saved)
        log = Log(self.checkpoint.parent, self.progress.step) if main else None
        self._objective.train()
        with bar(disable=not main) as shown:
            task = shown.add_task("training", total=self._total, completed=self.progress.step)
            for step, examples in self._steps():
                metrics = self._take(step, examples)
                if metrics is not None:
                    if log:
                        log.write("train", step + 1, metrics)
                    shown.update(task, completed=step + 1, description=f"loss {metrics['loss']:.4f}")
                self._after(step + 1, log)
        with torch.no_grad():
            for name, parameter in self._names.items():
                parameter.copy_(self._best[name])
        if log:
            log.close()

    def _steps(self) -> Iterator[tuple[int, list[Example]]]:
        """Yields the remaining steps, each with its examples."""
        seed = self._config.seed * 1_000_003
        for epoch in range(self._config.epochs):
            batches = length_buckets(self._train_examples, self._config.batch_size, seed=seed + epoch)
            for step, examples in enumerate(batches, start=epoch * self._batches_per_epoch):
                if step >= self.progress.step and not self.progress.finished:
                    yield step, examples

    def _take(self, step: int, examples: list[Example]) -> dict[str, float] | None:
        """Takes this process's share of one step. Returns None where there are too few examples for all processes."""
        set_learning_rate(self._optimizer, self._config, step, self._total)
        torch.manual_seed(self._config.seed * 1_000_003 + step)
        processes = self.accelerator.num_processes
        if len(examples) < processes:  # some process would have nothing to do
            return None
        mine = examples[self.accelerator.process_index :: processes]
        most = -(-len(examples) // processes) if self._together else len(mine)
        size = -(-most // self._config.gradient_accumulation)
        parts = [collate(mine[start : start + size], self._pad_token_id) for start in range(0, len(mine), size)]
        idle = -(-most // size) - len(parts)
        return take_step(self._wrapped, self._optimizer, parts, self._config, self.accelerator, idle)

    def _after(self, step: int, log: Log | None) -> None:
        """Evaluates and makes a checkpoint, if either is due after this step."""
        progress = self.progress
        progress.step = step
        evaluating = step % self._evaluate_every == 0 or step == self._total
        if evaluating:
            metrics = self._measure()
            if metrics["loss"] < progress.best["loss"]:
                progress.best, progress.stale = metrics | {"step": step}, 0
                self._best = self._copied()
            else:
                progress.stale += 1
            progress.finished = progress.stale >= self._config.patience or step == self._total
            if log:
                log.write("eval", step, metrics)
        if log and (evaluating or step % self._config.checkpoint_every == 0):
            state = {**asdict(progress), "identity": self._identity}
            save_checkpoint(self.checkpoint, self._objective, self._optimizer, self._best, state)

    def _measure(self) -> dict[str, float]:
        self._objective.eval()
        size, pad = self._config.batch_size, self._pad_token_id
        metrics = evaluate(self._objective, self._eval_examples, size, self.accelerator, pad, self._together)
        self._objective.train()
        if not math.isfinite(metrics["loss"]):
            raise OtterError(f"the loss on the held-out examples is {metrics['loss']}: {DIVERGED}")
        return metrics


def _accelerator(mixed_precision: MixedPrecision) -> Accelerator:
    if mixed_precision == "auto":
        gpu = this_process().device.type == "cuda"
        return _accelerator("bf16" if gpu and torch.cuda.is_bf16_supported() else "no")
    try:
        return Accelerator(mixed_precision=mixed_precision)
    except ValueError as error:  # accelerate has one precision a process
        raise OtterError(f"mixed_precision {mixed_precision} cannot be used: {reason(error)}") from error


@torch.no_grad()
def evaluate(
    objective: nn.Module,
    examples: Sequence[Example],
    batch_size: int,
    accelerator: Accelerator,
    pad_token_id: int = 0,
    together: bool = False,
) -> dict[str, float]:
    """Returns the mean of every metric of `objective` over `examples`, which the processes share.

    Where they run the base `together`, as it is split over them, one without a batch reads another's, for nothing.
    """
    sums: dict[str, Tensor] = {}
    batches, number = length_buckets(examples, batch_size), accelerator.process_index
    while group := list(itertools.islice(batches, accelerator.num_processes)):
        counts = number < len(group)
        if not counts and not together:
            break
        batch = group[number if counts else 0]
        for name, value in objective(collate(batch, pad_token_id).to(accelerator.device)).items():
            sums[name] = sums.get(name, 0) + value.double() * (len(batch) if counts else 0)
    if accelerator.num_processes > 1:
        # A process with no batch has no names; every process must reduce the same tensors.
        gathered: list[dict[str, Tensor]] = [{} for _ in range(accelerator.num_processes)]
        torch.distributed.all_gather_object(gathered, sums)
        sums = {}
        for part in gathered:
            for name, value in part.items():
                sums[name] = sums.get(name, 0) + value.to(accelerator.device)
    return {name: (value / len(examples)).item() for name, value in sums.items()}

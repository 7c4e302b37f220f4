"""The training loop, the same for every signal: frozen base, deterministic order, exact resume.

The order of the data is a function of the seed and the epoch, dropout a function of the seed and the step, so a run
that is killed and started again ends with the weights of one that was not.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from otterlm.errors import OtterError
from otterlm.files import remove_unfinished, write_text
from otterlm.progress import bar
from otterlm.settings import check_settings, setting
from otterlm.training.checkpoint import load_checkpoint, save_checkpoint, trainable
from otterlm.training.packing import Example, collate, length_buckets


@dataclass(frozen=True, slots=True)
class TrainingConfig:
    """How to train.

    Attributes:
        epochs: passes over the training examples.
        batch_size: examples an optimizer step, over all processes.
        learning_rate: the peak, reached after the warm-up and followed by a linear decay to 0.
        weight_decay: AdamW's.
        warmup: fraction of the steps.
        max_grad_norm: gradients are clipped to this norm.
        evaluations_per_epoch: how often the held-out examples are scored.
        checkpoint_every: steps; every evaluation makes one too.
        patience: evaluations without a lower loss before training stops early.
        seed: of the order of the data and of dropout.
    """

    epochs: int = setting(1, "Passes over the data.", minimum=1)
    batch_size: int = setting(8, "Examples a step, over all processes.", minimum=1)
    learning_rate: float = setting(1e-3, "The peak, after the warm-up.")
    weight_decay: float = setting(0.01, "AdamW's.")
    warmup: float = setting(0.06, "Fraction of the steps.")
    max_grad_norm: float = 1.0
    evaluations_per_epoch: int = setting(2, "How often the held-out part is scored.", minimum=1)
    checkpoint_every: int = setting(50, minimum=1)
    patience: int = setting(4, "Evaluations without a lower loss before training stops.", minimum=1)
    seed: int = setting(0, "Of what is held out, of the order and of the initialisation.")

    def __post_init__(self) -> None:
        check_settings(self)
        for name in ("learning_rate", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise OtterError(f"{name} must be above 0, got {getattr(self, name)}")
        if not 0 <= self.warmup < 1:
            raise OtterError(f"warmup is a fraction of the steps, from 0 to below 1, got {self.warmup}")


@dataclass(slots=True)
class _Progress:
    """Where a run stands; saved with every checkpoint."""

    step: int = 0
    best: dict[str, float] = field(default_factory=lambda: {"loss": math.inf, "step": 0})
    stale: int = 0
    finished: bool = False

    @classmethod
    def restore(cls, saved: dict[str, Any], path: Path) -> "_Progress":
        try:
            return cls(**saved)
        except TypeError as error:
            raise OtterError(f"{path} is not a checkpoint of this run ({error}); delete it to start anew") from error


def train(
    objective: nn.Module,
    train_examples: Sequence[Example],
    eval_examples: Sequence[Example],
    config: TrainingConfig,
    out: Path,
    pad_token_id: int = 0,
) -> dict[str, float]:
    """Trains the parameters of `objective` that require gradients and leaves the best ones in it.

    Args:
        objective: called with a `Batch`; returns a dict of scalar tensors, means over the batch, with `loss` in it.
        train_examples: what to learn from.
        eval_examples: what decides when to stop and which weights are best.
        config: how.
        out: folder for `metrics.jsonl`, `tensorboard/` and `checkpoint.safetensors`. A checkpoint found there is gone
            on with.
        pad_token_id: any token id; padding is masked.

    Returns:
        The metrics of the best weights on `eval_examples`.

    Raises:
        OtterError: the loss is not finite, the checkpoint belongs to another run, or nothing can be written.
    """
    cuda_bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    accelerator = Accelerator(mixed_precision="bf16" if cuda_bf16 else "no")
    names = trainable(objective)
    if not names:
        raise OtterError("nothing to train: no parameter requires a gradient")
    if not train_examples or not eval_examples:
        raise OtterError("no examples to train on or to evaluate on")
    optimizer = torch.optim.AdamW(names.values(), lr=config.learning_rate, weight_decay=config.weight_decay)
    wrapped = accelerator.prepare(objective)
    batches_per_epoch = math.ceil(len(train_examples) / config.batch_size)
    total = batches_per_epoch * config.epochs
    evaluate_every = max(1, batches_per_epoch // config.evaluations_per_epoch)

    progress, best = _Progress(), {name: parameter.detach().clone() for name, parameter in names.items()}
    # Two runs with these equal take the same steps; a checkpoint of any other run is refused.
    identity = {
        **asdict(config),
        **getattr(objective, "identity", {}),
        "data": hashlib.sha256(repr((train_examples, eval_examples)).encode()).hexdigest(),
    }
    checkpoint = out / "checkpoint.safetensors"
    if checkpoint.exists():
        best, saved = load_checkpoint(checkpoint, objective, optimizer, identity)
        progress = _Progress.restore(saved, checkpoint)
    log = _Log(out, progress.step) if accelerator.is_main_process else None

    def measure() -> dict[str, float]:
        objective.eval()
        metrics = evaluate(objective, eval_examples, config.batch_size, accelerator, pad_token_id)
        objective.train()
        return metrics

    objective.train()
    with bar(disable=not accelerator.is_main_process) as shown:
        task = shown.add_task("training", total=total, completed=progress.step)
        for epoch in range(config.epochs):
            batches = list(length_buckets(train_examples, config.batch_size, seed=config.seed * 1_000_003 + epoch))
            for offset, examples in enumerate(batches):
                step = epoch * batches_per_epoch + offset
                if progress.finished or step < progress.step:
                    continue
                _set_learning_rate(optimizer, config, step, total)
                torch.manual_seed(config.seed * 1_000_003 + step)
                mine = examples[accelerator.process_index :: accelerator.num_processes]
                if len(examples) >= accelerator.num_processes:  # else some process would have nothing to do
                    metrics = _step(wrapped, optimizer, collate(mine, pad_token_id), config, accelerator)
                    if log:
                        log.write("train", step + 1, metrics)
                    shown.update(task, completed=step + 1, description=f"loss {metrics['loss']:.4f}")
                progress.step = step + 1
                evaluating = progress.step % evaluate_every == 0 or progress.step == total
                if evaluating:
                    metrics = measure()
                    if metrics["loss"] < progress.best["loss"]:
                        progress.best, progress.stale = metrics | {"step": progress.step}, 0
                        best = {name: parameter.detach().clone() for name, parameter in names.items()}
                    else:
                        progress.stale += 1
                    progress.finished = progress.stale >= config.patience or progress.step == total
                    if log:
                        log.write("eval", progress.step, metrics)
                if log and (evaluating or progress.step % config.checkpoint_every == 0):
                    save_checkpoint(checkpoint, objective, optimizer, best, {**asdict(progress), "identity": identity})
    with torch.no_grad():
        for name, parameter in names.items():
            parameter.copy_(best[name])
    if log:
        log.close()
    accelerator.wait_for_everyone()
    return progress.best


def _step(
    wrapped: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: object,
    config: TrainingConfig,
    accelerator: Accelerator,
) -> dict[str, float]:
    with accelerator.autocast():
        metrics = wrapped(batch.to(accelerator.device))  # type: ignore[attr-defined]
    if not torch.isfinite(metrics["loss"]):
        raise OtterError(
            f"the loss is {metrics['loss'].item()}: lower the learning rate or look at the data "
            "(the last checkpoint is whole and is gone on with)"
        )
    optimizer.zero_grad(set_to_none=True)
    accelerator.backward(metrics["loss"])
    norm = accelerator.clip_grad_norm_(optimizer.param_groups[0]["params"], config.max_grad_norm)
    optimizer.step()
    return {name: value.item() for name, value in metrics.items()} | {
        "gradient_norm": float(norm),
        "learning_rate": optimizer.param_groups[0]["lr"],
    }


def _set_learning_rate(optimizer: torch.optim.Optimizer, config: TrainingConfig, step: int, total: int) -> None:
    warmup = max(1, round(config.warmup * total))
    factor = (step + 1) / warmup if step < warmup else (total - step) / max(1, total - warmup)
    for group in optimizer.param_groups:
        group["lr"] = config.learning_rate * factor


@torch.no_grad()
def evaluate(
    objective: nn.Module,
    examples: Sequence[Example],
    batch_size: int,
    accelerator: Accelerator,
    pad_token_id: int = 0,
) -> dict[str, float]:
    """The mean of every metric of `objective` over `examples`, shared out over the processes."""
    sums: dict[str, Tensor] = {}
    batches = list(length_buckets(examples, batch_size))
    for batch in batches[accelerator.process_index :: accelerator.num_processes]:
        for name, value in objective(collate(batch, pad_token_id).to(accelerator.device)).items():
            sums[name] = sums.get(name, 0) + value.double() * len(batch)
    if accelerator.num_processes > 1:
        # A process with no batch has no names; every process must reduce the same tensors.
        gathered: list[dict[str, Tensor]] = [{} for _ in range(accelerator.num_processes)]
        torch.distributed.all_gather_object(gathered, sums)
        sums = {}
        for part in gathered:
            for name, value in part.items():
                sums[name] = sums.get(name, 0) + value.to(accelerator.device)
    return {name: (value / len(examples)).item() for name, value in sums.items()}


class _Log:
    """Metrics as JSON lines and for TensorBoard."""

    def __init__(self, out: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        path = out / "metrics.jsonl"
        remove_unfinished(out)
        # What a killed run logged after its last checkpoint is going to be logged again.
        lines = path.read_text().splitlines() if path.exists() else []
        kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= step]
        write_text(path, "".join(f"{line}\n" for line in kept))
        self._file = path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(out / "tensorboard"), purge_step=step + 1)

    def write(self, phase: str, step: int, metrics: dict[str, float]) -> None:
        try:
            self._file.write(json.dumps({"phase": phase, "step": step, **metrics}) + "\n")
            self._file.flush()
            for name, value in metrics.items():
                self._board.add_scalar(f"{phase}/{name}", value, step)
        except OSError as error:
            raise OtterError(f"{self._file.name} could not be written: {error.strerror or error}") from error

    def close(self) -> None:
        self._file.close()
        self._board.close()

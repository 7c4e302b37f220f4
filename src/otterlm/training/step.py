"""Takes one optimizer step: the parts of its batch, their gradients added up, and the learning rate."""

import math
from collections.abc import Sequence
from contextlib import nullcontext

import torch
from accelerate import Accelerator
from torch import nn

from otterlm.errors import OtterError
from otterlm.training.config import TrainingConfig
from otterlm.training.data.packing import Batch

DIVERGED = "lower the learning rate or look at the data (the last checkpoint is whole and is gone on with)"


def take_step(
    wrapped: nn.Module,
    optimizer: torch.optim.Optimizer,
    parts: Sequence[Batch],
    config: TrainingConfig,
    accelerator: Accelerator,
    idle: int = 0,
) -> dict[str, float]:
    """Takes one step.

    Args:
        wrapped: the objective, as accelerate prepared it.
        optimizer: of what is trained.
        parts: of this process's share of the batch, read one after the other.
        config: of the training.
        accelerator: shares gradients between processes.
        idle: passes that count nothing, for other processes with more parts: a base that is split runs in all at once.

    Returns:
        The means of the objective's metrics, with `gradient_norm` and `learning_rate`.

    Raises:
        OtterError: the loss is not finite.
    """
    optimizer.zero_grad(set_to_none=True)
    for _ in range(idle):
        with accelerator.no_sync(wrapped), accelerator.autocast():
            accelerator.backward(wrapped(parts[0].to(accelerator.device))["loss"] * 0)
    metrics: dict[str, float] = {}
    for number, batch in enumerate(parts, start=1):
        share = len(batch.rows) / sum(len(part.rows) for part in parts)
        # Processes share their gradients once a step, with the last part.
        with nullcontext() if number == len(parts) else accelerator.no_sync(wrapped):
            with accelerator.autocast():
                measured = wrapped(batch.to(accelerator.device))
            accelerator.backward(measured["loss"] * share)
        # Read together, and after the backward pass is on its way: a GPU is waited for once.
        values = torch.stack([value.detach().double() for value in measured.values()]).tolist()
        for name, value in zip(measured, values, strict=True):
            metrics[name] = metrics.get(name, 0.0) + value * share
        if not math.isfinite(loss := values[list(measured).index("loss")]):
            raise OtterError(f"the loss is {loss}: {DIVERGED}")
    norm = accelerator.clip_grad_norm_(optimizer.param_groups[0]["params"], config.max_grad_norm)
    optimizer.step()
    return metrics | {
        "gradient_norm": float(norm),
        "learning_rate": optimizer.param_groups[0]["lr"],
    }


def set_learning_rate(optimizer: torch.optim.Optimizer, config: TrainingConfig, step: int, total: int) -> None:
    """Sets the learning rate of a step, one of `total`: a linear rise, then a linear fall to 0."""
    warmup = max(1, round(config.warmup * total))
    factor = (step + 1) / warmup if step < warmup else (total - step) / max(1, total - warmup)
    for group in optimizer.param_groups:
        group["lr"] = config.peak * factor

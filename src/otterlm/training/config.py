"""Holds the settings of the training loop."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from otterlm.errors import OtterError
from otterlm.settings import check_settings, setting

MixedPrecision = Literal["auto", "no", "bf16"]
RATE = 1e-3
"""A learning rate that suits SmolLM2-135M, and bases with smaller states."""


@dataclass(frozen=True, slots=True)
class TrainingConfig:
    """The configuration holds the settings of training.

    Attributes:
        epochs: passes over the training examples.
        batch_size: examples an optimizer step, over all processes.
        gradient_accumulation: passes a step: each process reads its examples in so many parts, and adds up their
            gradients. A part's mean counts by its examples, so where a loss is a mean over tokens the sum is only near
            that of one pass.
        gradient_checkpointing: whether blocks are computed again in the backward pass, which takes less memory and more
            time, see `otterlm.training.recomputation`.
        mixed_precision: `bf16` or `no`; `auto`: bf16 on a GPU that has it.
        learning_rate: the peak, reached after the warm-up and followed by a linear decay to 0; None: one that suits the
            base, see `otterlm.training.learning_rate`.
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
    gradient_accumulation: int = setting(1, "Passes a step; more need less memory.", minimum=1, advanced=True)
    gradient_checkpointing: bool = setting(
        False, "Compute blocks again in the backward pass: less memory, more time.", advanced=True
    )
    mixed_precision: MixedPrecision = setting(
        "auto", "bf16 or no; auto: bf16 on a GPU that has it. CPUs with AVX512-BF16 gain, too.", advanced=True
    )
    learning_rate: float | None = setting(
        None, "Peak of the learning rate, after the warm-up. By default one that suits the base."
    )
    weight_decay: float = setting(0.01, "Weight decay of AdamW.", advanced=True)
    warmup: float = setting(0.06, "Warm-up, as a fraction of the steps.", advanced=True)
    max_grad_norm: float = 1.0
    evaluations_per_epoch: int = setting(2, "How often the held-out part is scored.", minimum=1, advanced=True)
    checkpoint_every: int = setting(50, minimum=1)
    patience: int = setting(4, "Evaluations without a lower loss before training stops.", minimum=1, advanced=True)
    seed: int = setting(0, "Seed of what is held out, of the order and of the initialisation.", advanced=True)

    @property
    def peak(self) -> float:
        """Returns the peak of the learning rate; `RATE` where none is chosen."""
        return RATE if self.learning_rate is None else self.learning_rate

    def __post_init__(self) -> None:
        check_settings(self)
        if self.mixed_precision not in get_args(MixedPrecision):
            choices = ", ".join(get_args(MixedPrecision))
            raise OtterError(f"mixed_precision must be one of {choices}, got {self.mixed_precision!r}")
        for name in ("learning_rate", "max_grad_norm"):
            if getattr(self, name) is not None and not 0 < getattr(self, name) < math.inf:
                raise OtterError(f"{name} must be above 0, got {getattr(self, name)}")
        if not 0 <= self.weight_decay < math.inf:
            raise OtterError(f"weight_decay must be 0 or more, got {self.weight_decay}")
        if not 0 <= self.seed < 2**32:
            raise OtterError(f"seed must be from 0 to {2**32 - 1}, got {self.seed}")
        if not 0 <= self.warmup < 1:
            raise OtterError(f"warmup is a fraction of the steps, from 0 to below 1, got {self.warmup}")

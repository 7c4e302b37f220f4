"""Registers the guard signal."""

from otterlm.signals.base import SignalType
from otterlm.signals.guard.config import GuardConfig

SIGNAL = SignalType(
    GuardConfig,
    head="otterlm.signals.guard.head:GuardHead",
    recipes={
        "train": "otterlm.training.recipes.guard:GuardRecipe",
        "distill": "otterlm.training.recipes.guard_distillation:GuardDistillationRecipe",
    },
)

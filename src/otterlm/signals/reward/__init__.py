"""The reward signal gives a number for every prefix."""

from otterlm.signals.base import SignalType
from otterlm.signals.reward.config import RewardConfig

SIGNAL = SignalType(
    RewardConfig,
    head="otterlm.signals.reward.head:RewardHead",
    recipes={
        "train": "otterlm.training.recipes.reward:RewardRecipe",
        "distill": "otterlm.training.recipes.distillation:DistillationRecipe",
    },
)

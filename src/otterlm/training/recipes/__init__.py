"""Makes saved adapters from data, as `otter train` and `otter distill` do. Each recipe has one file."""

from otterlm.training.recipes.base import Recipe
from otterlm.training.recipes.common import Run
from otterlm.training.recipes.contrast import ContrastRecipe
from otterlm.training.recipes.distillation import DistillationRecipe
from otterlm.training.recipes.draft import DraftRecipe
from otterlm.training.recipes.experts import ExpertsRecipe
from otterlm.training.recipes.guard import GuardRecipe
from otterlm.training.recipes.guard_distillation import GuardDistillationRecipe
from otterlm.training.recipes.reward import RewardRecipe

__all__ = [
    "ContrastRecipe",
    "DistillationRecipe",
    "DraftRecipe",
    "ExpertsRecipe",
    "GuardDistillationRecipe",
    "GuardRecipe",
    "Recipe",
    "RewardRecipe",
    "Run",
]

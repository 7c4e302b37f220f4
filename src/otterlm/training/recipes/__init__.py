"""From data to a saved adapter: what `otter train` and `otter distill` do. One file each."""

from otterlm.training.recipes.base import Recipe
from otterlm.training.recipes.common import Run
from otterlm.training.recipes.contrast import ContrastRecipe
from otterlm.training.recipes.distillation import DistillationRecipe
from otterlm.training.recipes.draft import DraftRecipe
from otterlm.training.recipes.experts import ExpertsRecipe
from otterlm.training.recipes.reward import RewardRecipe

__all__ = ["ContrastRecipe", "DistillationRecipe", "DraftRecipe", "ExpertsRecipe", "Recipe", "RewardRecipe", "Run"]

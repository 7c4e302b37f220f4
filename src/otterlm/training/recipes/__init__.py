"""From data to a saved adapter: what `otter train` and `otter distill` do. One file each."""

from otterlm.training.recipes.common import Run
from otterlm.training.recipes.contrast import train_contrast
from otterlm.training.recipes.distillation import distill
from otterlm.training.recipes.draft import train_draft
from otterlm.training.recipes.experts import distill_experts
from otterlm.training.recipes.reward import train_reward

__all__ = ["Run", "distill", "distill_experts", "train_contrast", "train_draft", "train_reward"]

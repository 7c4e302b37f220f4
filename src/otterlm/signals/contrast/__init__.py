"""Names the parts of the contrast signal."""

from otterlm.signals.base import SignalType
from otterlm.signals.contrast.config import ContrastConfig

SIGNAL = SignalType(
    ContrastConfig,
    head="otterlm.signals.contrast.head:ContrastHead",
    recipes={
        "train": "otterlm.training.recipes.contrast:ContrastRecipe",
        "distill": "otterlm.training.recipes.experts:ExpertsRecipe",
    },
)

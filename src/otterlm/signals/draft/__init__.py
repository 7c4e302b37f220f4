"""Names the parts of the draft signal."""

from otterlm.signals.base import SignalType
from otterlm.signals.draft.config import DraftConfig

SIGNAL = SignalType(
    DraftConfig,
    head="otterlm.signals.draft.head:DraftHead",
    recipes={"train": "otterlm.training.recipes.draft:DraftRecipe"},
)

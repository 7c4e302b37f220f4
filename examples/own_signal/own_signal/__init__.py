"""Predicts how unsure the base is going to be: a signal that Otter does not have, in another package."""

from otterlm.signals.base import SignalType
from own_signal.config import UncertaintyConfig

SIGNAL = SignalType(
    UncertaintyConfig,
    head="own_signal.head:UncertaintyHead",
    recipes={"train": "own_signal.recipe:UncertaintyRecipe"},
)

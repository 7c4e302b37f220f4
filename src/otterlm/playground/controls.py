"""Describes the fields for the settings of interventions from the registry. Knows nothing of a page."""

from dataclasses import Field, dataclass, fields
from typing import Any, Self

from otterlm.interventions import InterventionSettings

STRENGTHS = ("weight", "alpha")
"""How strongly a method guides. Of these a page takes several values, and shows the responses side by side."""


@dataclass(frozen=True, slots=True)
class Control:
    """Describes the field of a setting.

    Attributes:
        name: the setting's.
        label: the same as a person reads it.
        info: its help.
        low, high, step: what the field's arrows choose from; other values can be typed.
        default: the setting's; None where an empty field means that it is not set.
    """

    name: str
    label: str
    info: str
    low: float
    high: float
    step: float
    default: float | None

    @classmethod
    def of(cls, field: Field[Any]) -> Self:
        """Makes the field of a setting."""
        low, high, step = field.metadata["slider"]
        default: Any = field.default
        off = default is None or not low <= default <= high
        label = field.name.replace("_", " ").capitalize()
        return cls(field.name, label, field.metadata["help"], low, high, step, None if off else default)


def controls() -> list[Control]:
    """Makes the fields of all settings, in the registry's order."""
    return [Control.of(field) for field in fields(InterventionSettings)]

"""Makes sliders for the settings of interventions from the registry. Knows nothing of a page."""

from collections.abc import Collection
from dataclasses import Field, dataclass, fields
from typing import Any, Self

from otterlm.interventions import InterventionSettings


@dataclass(frozen=True, slots=True)
class Control:
    """Describes a slider for a setting.

    Attributes:
        name: the setting's.
        info: its help.
        low, high, step: what can be chosen.
        start: what is chosen at first.
        default: the setting's.
        off: whether the default lies outside, and the lowest value stands for it.
    """

    name: str
    info: str
    low: float
    high: float
    step: float
    start: float
    default: Any
    off: bool

    @classmethod
    def of(cls, field: Field[Any]) -> Self:
        """Makes the slider of a setting."""
        low, high, step = field.metadata["slider"]
        default: Any = field.default
        off = default is None or not low <= default <= high
        info = f"{field.metadata['help']} Far left: not set." if off else field.metadata["help"]
        return cls(field.name, info, low, high, step, low if off else default, default, off)

    @property
    def label(self) -> str:
        """The setting's name as a person reads it."""
        return self.name.replace("_", " ")

    def value(self, chosen: Any) -> Any:
        """Returns the setting's value where the slider stands at this."""
        return self.default if self.off and chosen == self.low else chosen


def controls(names: Collection[str]) -> list[Control]:
    """Makes the sliders of settings, in the registry's order."""
    return [Control.of(field) for field in fields(InterventionSettings) if field.name in names]

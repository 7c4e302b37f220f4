"""Defines the uncertainty signal's configuration."""

from dataclasses import dataclass
from typing import ClassVar

from otterlm.settings import check_settings, setting
from otterlm.signals.base import Capability, SignalConfig


@dataclass(frozen=True, slots=True)
class UncertaintyConfig(SignalConfig):
    """The uncertainty signal is the entropy of the base's next-token distribution some tokens ahead.

    Attributes:
        ahead: how many tokens; 0 is the distribution of the next one, which the base itself gives.
    """

    type: ClassVar[str] = "uncertainty"
    ahead: int = setting(4, "How many tokens ahead the entropy is that is predicted.", minimum=1)

    def __post_init__(self) -> None:
        check_settings(self)

    @property
    def capabilities(self) -> Capability:
        """Returns `BESIDE` and `PREFIX`: the signal has a number for every prefix, and does not steer."""
        return Capability.BESIDE | Capability.PREFIX

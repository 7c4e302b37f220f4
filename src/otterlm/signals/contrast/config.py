"""Defines the contrast signal's configuration."""

from dataclasses import dataclass
from typing import ClassVar

from otterlm.settings import check_settings, setting
from otterlm.signals.base import Capability, SignalConfig


@dataclass(frozen=True, slots=True)
class ContrastConfig(SignalConfig):
    """The contrast signal has the next-token distributions of an expert and an anti-expert.

    Attributes:
        rank: of each side's correction of the base's logits.
    """

    type: ClassVar[str] = "contrast"
    rank: int = setting(32, "Rank of each side's correction of the logits.", minimum=1)

    def __post_init__(self) -> None:
        check_settings(self)

    @property
    def capabilities(self) -> Capability:
        """Returns `BESIDE` without `PREFIX`: the number beside a token is of the choice, not of the prefix."""
        return Capability.BESIDE | Capability.REPLACES

    def limits(self, width: int, vocabulary: int) -> dict[str, tuple[int, int]]:
        """Returns the limit of the rank, see `SignalConfig`."""
        return {"rank": (self.rank, width)}

    def derived_parameters(self, vocabulary: int) -> int:
        """Counts both sides' up projections folded with the unembedding."""
        return 2 * vocabulary * self.rank

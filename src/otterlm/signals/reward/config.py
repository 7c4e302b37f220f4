"""Configures the reward signal, and says what its numbers mean."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from otterlm.errors import OtterError
from otterlm.settings import check_settings, setting
from otterlm.signals.base import Capability, SignalConfig

NATS = 0.5
"""What weight 1 adds for one advantage spread. With 1 nat greedy text begins to repeat itself and gains no more, see
docs/benchmarks/steering.md."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """Says what rewards mean, see `otterlm.training.evaluation.calibration`.

    Attributes:
        curve: points (reward, score), both rising; between them the line.
        threshold: of an alarm.
        false_alarm_rate: the share of good responses that were to fall under it.
    """

    curve: tuple[tuple[float, float], ...]
    threshold: float
    false_alarm_rate: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "curve", tuple(tuple(point) for point in self.curve))
        numbers = [value for point in self.curve for value in point] + [self.threshold, self.false_alarm_rate]
        if not all(isinstance(value, int | float) and abs(value) < 1e30 for value in numbers):
            raise OtterError("a calibration holds finite numbers")
        rising = all(a[0] <= b[0] and a[1] <= b[1] for a, b in itertools.pairwise(self.curve))
        if not 1 <= len(self.curve) <= 1000 or any(len(point) != 2 for point in self.curve) or not rising:
            raise OtterError("a calibration's curve is 1 to 1000 points (reward, score), both rising")


@dataclass(frozen=True, slots=True)
class RewardConfig(SignalConfig):
    """The reward signal gives a number for every prefix, and for every possible next token.

    Attributes:
        vocabulary_rank: rank of the vocabulary head; 0 for the prefix head alone.
        calibration: what the rewards mean; None: not measured.
        mean, spread: the mean and the standard deviation of the final rewards of the base's own responses; None: not
            measured.
        advantage_spread: the standard deviation of what the base's plausible next tokens change in the reward, as the
            vocabulary head predicts it; None: not measured.
        vocabulary_hidden: width of the head's two small networks, see `otterlm.signals.two_towers`; 0 for linear maps.
    """

    type: ClassVar[str] = "reward"
    vocabulary_rank: int = setting(32, "Rank of the vocabulary head; 0 for none.", minimum=0)
    calibration: Calibration | None = None
    mean: float | None = None
    spread: float | None = None
    advantage_spread: float | None = None
    vocabulary_hidden: int = setting(256, "Hidden width of the vocabulary head; 0 for a linear one.", minimum=0)

    def __post_init__(self) -> None:
        check_settings(self)
        if self.mean is not None and not (isinstance(self.mean, int | float) and abs(self.mean) < 1e30):
            raise OtterError(f"mean must be a number, got {self.mean!r}")
        for name in ("spread", "advantage_spread"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int | float) and 1e-30 < value < 1e30):
                raise OtterError(f"{name} must be a number above 0, got {value!r}")
        if isinstance(self.calibration, dict):  # from JSON
            object.__setattr__(self, "calibration", Calibration(**self.calibration))
        if self.calibration is not None and not isinstance(self.calibration, Calibration):
            raise OtterError(f"calibration must be an object, got {self.calibration!r}")

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Self:
        """Reads a file, see `SignalConfig`. Heads were linear before they had a hidden width."""
        return cls(**{"vocabulary_hidden": 0, **values})

    @property
    def capabilities(self) -> Capability:
        """Steering needs the vocabulary head."""
        adds = Capability.ADDS if self.vocabulary_rank else Capability(0)
        return Capability.BESIDE | Capability.PREFIX | adds

    @property
    def typical_range(self) -> tuple[float, float] | None:
        """Returns two spreads below the mean and two above it."""
        if self.mean is None or self.spread is None:
            return None
        return self.mean - 2 * self.spread, self.mean + 2 * self.spread

    @property
    def unit(self) -> float:
        """Returns what a weight of 1 stands for: guidance then adds `NATS` to the logit of a token that is one
        advantage spread better than the expected."""
        return 1.0 if self.advantage_spread is None else self.advantage_spread / NATS

    def limits(self, width: int, vocabulary: int) -> dict[str, tuple[int, int]]:
        """Returns the limits, see `SignalConfig`."""
        return {"vocabulary_rank": (self.vocabulary_rank, width)}

    def derived_parameters(self, vocabulary: int) -> int:
        """Counts an up projection folded with the unembedding."""
        return vocabulary * self.vocabulary_rank

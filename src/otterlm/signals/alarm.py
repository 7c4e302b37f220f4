"""Decides by the probabilities of classes: when the alarm of a running text rings, and what they mean for a whole text.

Stops in Transformers and in engines decide by the same settings. Nothing here needs torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real

from otterlm.checks import LARGEST_PATIENCE, check_alarm, check_count
from otterlm.errors import OtterError
from otterlm.signals.base import ClassConfig

Alarm = float | Mapping[str, float] | None
"""From which probability on a token is a hit: of all labels, of some labels by name, or as the adapter has it."""


@dataclass(frozen=True, slots=True)
class AlarmSettings:
    """An alarm rings when `hits` of the latest `window` tokens reach the probability of one label.

    Attributes:
        alarms: the labels that raise it, with their probabilities; above 1 it never rings.
        hits, window: see there.
    """

    alarms: dict[str, float]
    hits: int
    window: int

    @property
    def off(self) -> bool:
        """Says whether it never rings."""
        return all(alarm > 1 for alarm in self.alarms.values())


def alarm_settings(
    config: ClassConfig, alarm: Alarm = None, hits: int | None = None, window: int | None = None
) -> AlarmSettings:
    """Makes the settings of an alarm, completed with those of an adapter.

    Args:
        config: of the adapter's signal.
        alarm: see `Alarm`; labels that a mapping leaves out raise no alarm.
        hits, window: None: the adapter's.

    Raises:
        OtterError: a setting is out of range, or there is no such label.
    """
    labels = config.alarms
    if alarm is None:
        alarms = dict(labels)
    elif isinstance(alarm, Mapping):
        unknown = [name for name in alarm if name not in config.labels]
        if unknown:
            raise OtterError(f"there is no label {unknown[0]!r}; there are: {', '.join(config.labels)}")
        if not alarm:
            raise OtterError("the alarm names no label")
        alarms = {name: check_alarm(f"the alarm of {name}", value) for name, value in alarm.items()}
    else:
        alarms = dict.fromkeys(labels, check_alarm("alarm", alarm))
    window = config.window if window is None else check_count("window", window, most=LARGEST_PATIENCE)
    hits = config.hits if hits is None else check_count("hits", hits, most=LARGEST_PATIENCE)
    if hits > window:
        raise OtterError(f"hits ({hits}) must not exceed the window ({window})")
    return AlarmSettings(alarms, hits, window)


def never_rings(alarm: Alarm) -> bool:
    """Says whether an alarm cannot ring, as far as that is known without an adapter."""
    alarms = alarm.values() if isinstance(alarm, Mapping) else () if alarm is None else (alarm,)
    return bool(alarms) and all(isinstance(each, Real) and each > 1 for each in alarms)


@dataclass(frozen=True, slots=True)
class Verdict:
    """A verdict is what a guard says of a whole text.

    Attributes:
        label: the likeliest label that raises an alarm.
        probability: of it.
        flagged: whether it, or another one, reaches its threshold.
        probabilities: of all labels.
    """

    label: str
    probability: float
    flagged: bool
    probabilities: dict[str, float]


def verdict(probabilities: dict[str, float], config: ClassConfig) -> Verdict:
    """Returns what a guard's probabilities mean for a whole text, by its thresholds."""
    thresholds = config.thresholds
    label = max(thresholds, key=lambda name: probabilities[name])
    flagged = any(probabilities[name] >= threshold for name, threshold in thresholds.items())
    return Verdict(label, probabilities[label], flagged, probabilities)

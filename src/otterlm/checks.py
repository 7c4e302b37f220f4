"""Checks settings by rules. A rule takes a setting's name and its value, and returns a plain number.

Nothing here needs torch: a client of an engine checks its settings, too.
"""

import math
from numbers import Integral, Real
from typing import Any

from otterlm.errors import OtterError

LARGEST_WEIGHT = 1e6
"""With larger weights the sum of a logit and a weighted reward no longer depends on the logit, and may overflow."""
LARGEST_PATIENCE = 1 << 20
"""The largest patience, and the largest window of an alarm, are in tokens. No response is longer."""


def shown(value: Any) -> str:
    """Returns a value as an error names it, in a short line: others than numbers and texts by their type."""
    try:
        text = repr(value)
    except ValueError:  # Python prints no number of thousands of digits
        return "a number with too many digits"
    if "\n" in text or (len(text) > 60 and not isinstance(value, Real | str)):
        return f"a {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:60]}..."


def _float(value: Any) -> float:
    """Returns a number as a float; NaN, which no range contains, for what is no number or too large."""
    if not isinstance(value, Real) or isinstance(value, bool):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.nan


def check_number(name: str, value: Any) -> float:
    """Checks that a value is a finite number.

    Raises:
        OtterError: it is not.
    """
    number = _float(value)
    if not math.isfinite(number):
        raise OtterError(f"{name} must be a finite number, got {shown(value)}")
    return number


def check_weight(name: str, value: Any) -> float:
    """Checks that a value is a finite number not larger than `LARGEST_WEIGHT`, whatever its sign.

    Raises:
        OtterError: it is not.
    """
    number = check_number(name, value)
    if abs(number) > LARGEST_WEIGHT:
        raise OtterError(f"{name} must be from -{LARGEST_WEIGHT:g} to {LARGEST_WEIGHT:g}, got {shown(value)}")
    return number


def check_threshold(name: str, value: Any) -> float:
    """Checks that a value is a number, which may be infinite.

    Raises:
        OtterError: it is not.
    """
    number = _float(value)
    if math.isnan(number):
        raise OtterError(f"{name} must be a number, got {shown(value)}")
    return number


def check_alarm(name: str, value: Any) -> float:
    """Checks that a value is a probability, or a number above 1, which no probability reaches.

    Raises:
        OtterError: it is not.
    """
    number = _float(value)
    if not number >= 0:
        raise OtterError(f"{name} must be a probability (above 1: it never rings), got {shown(value)}")
    return number


def check_positive(name: str, value: Any) -> float:
    """Checks that a value is a finite number above 0.

    Raises:
        OtterError: it is not.
    """
    number = _float(value)
    if not 0 < number < math.inf:
        raise OtterError(f"{name} must be above 0 and finite, got {shown(value)}")
    return number


def check_share(name: str, value: Any) -> float:
    """Checks that a value is a number above 0 and at most 1.

    Raises:
        OtterError: it is not.
    """
    number = _float(value)
    if not 0 < number <= 1:
        raise OtterError(f"{name} must be above 0 and at most 1, got {shown(value)}")
    return number


def check_chance(name: str, value: Any) -> float:
    """Checks that a value is a number from 0 to 1.

    Raises:
        OtterError: it is not.
    """
    number = _float(value)
    if not 0 <= number <= 1:
        raise OtterError(f"{name} must be from 0 to 1, got {shown(value)}")
    return number


def check_rate(name: str, value: Any) -> float:
    """Checks that a value is a number above 0 and below 1.

    Raises:
        OtterError: it is not.
    """
    number = _float(value)
    if not 0 < number < 1:
        raise OtterError(f"{name} must be between 0 and 1, got {shown(value)}")
    return number


def check_count(name: str, value: Any, least: int = 1, most: int | None = None) -> int:
    """Checks that a value is a whole number of at least `least`, and at most `most` if there is one.

    Raises:
        OtterError: it is not.
    """
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not whole or value < least or (most is not None and value > most):
        limits = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise OtterError(f"{name} must be a whole number {limits}, got {shown(value)}")
    return int(value)

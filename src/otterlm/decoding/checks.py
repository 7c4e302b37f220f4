"""Checks that the interventions share."""

import math

from otterlm.errors import OtterError


def check_weight(weight: float) -> float:
    """A finite weight.

    Raises:
        OtterError: it is not.
    """
    if not isinstance(weight, int | float) or not math.isfinite(weight):
        raise OtterError(f"the weight must be a finite number, got {weight!r}")
    return float(weight)


def check_count(name: str, value: int) -> int:
    """A whole number of at least 1.

    Raises:
        OtterError: it is not.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise OtterError(f"{name} must be a whole number of at least 1, got {value!r}")
    return value

"""Checks that the interventions share."""

import math
from numbers import Integral, Real
from typing import Any

from otterlm.errors import OtterError
from otterlm.families.facts import decoder_config, window_of
from otterlm.model import OtterModel


def shown(value: Any) -> str:
    """A value as an error names it, in a line: numbers and short texts as they are, others by their type."""
    text = repr(value)
    return text if len(text) < 40 and "\n" not in text else f"a {type(value).__name__}"


def check_weight(weight: float, name: str = "the weight") -> float:
    """A finite weight.

    Raises:
        OtterError: it is not.
    """
    if not isinstance(weight, Real) or not math.isfinite(weight):
        raise OtterError(f"{name} must be a finite number, got {shown(weight)}")
    return float(weight)


def check_count(name: str, value: int) -> int:
    """A whole number of at least 1.

    Raises:
        OtterError: it is not.
    """
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
        raise OtterError(f"{name} must be a whole number of at least 1, got {shown(value)}")
    return int(value)


def check_share(name: str, value: float) -> float:
    """A number above 0 and at most 1.

    Raises:
        OtterError: it is not.
    """
    if not isinstance(value, Real) or not 0 < value <= 1:
        raise OtterError(f"{name} must be above 0 and at most 1, got {shown(value)}")
    return float(value)


def check_chance(name: str, value: float) -> float:
    """A number from 0 to 1.

    Raises:
        OtterError: it is not.
    """
    if not isinstance(value, Real) or not 0 <= value <= 1:
        raise OtterError(f"{name} must be from 0 to 1, got {shown(value)}")
    return float(value)


def check_window(model: OtterModel, length: int) -> None:
    """That a text of this length fits the base's sliding window, if it has one: several tokens tried for one place
    need a cache that keeps the whole prefix.

    Raises:
        OtterError: it does not.
    """
    config = decoder_config(model.base_model)
    windows = [window_of(config, model.family, layer) for layer in range(config.num_hidden_layers)]
    window = min((window for window in windows if window is not None), default=None)
    if window is not None and length > window:
        raise OtterError(
            f"this decoding needs the whole prefix in the window: {length} tokens, but the base's window is {window}"
        )

"""Tells what an engine can do with the signal of an adapter, by its configuration. It needs no torch."""

from collections.abc import Mapping
from typing import Any

from otterlm.signals import signal_type
from otterlm.signals.base import SignalConfig


def signal_config(signal: Mapping[str, Any]) -> SignalConfig:
    """Reads the configuration of a signal, which says what can be done with it.

    Args:
        signal: the `signal` of an `adapter_config.json`.

    Raises:
        OtterError: the signal is unknown.
    """
    values = dict(signal)
    return signal_type(values.pop("type")).config(**values)

"""Tells what an engine can do with the signal of an adapter, by its configuration. It needs no torch."""

from collections.abc import Mapping
from typing import Any

from otterlm.signals import signal_type
from otterlm.signals.base import Capability


def capabilities(signal: Mapping[str, Any]) -> Capability:
    """Says what can be done with a signal, by its configuration (the `signal` of an `adapter_config.json`).

    Raises:
        OtterError: the signal is unknown.
    """
    values = dict(signal)
    config = signal_type(values.pop("type")).config
    return config(**values).capabilities

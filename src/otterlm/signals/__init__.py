"""Registers the signals that an inserted stream can predict.

A signal has one folder, with its configuration, its head and its objective.

The registry knows the signals of this package and those of other packages, which name theirs under the entry-point
group `otterlm.signals`:

    [project.entry-points."otterlm.signals"]
    mood = "my_package:SIGNAL"
"""

import functools
import importlib
from importlib.metadata import entry_points
from typing import Any

from otterlm.errors import OtterError, reason
from otterlm.signals import contrast, draft, guard, reward
from otterlm.signals.base import SignalConfig, SignalType

GROUP = "otterlm.signals"

_registered = {signal.name: signal for signal in (reward.SIGNAL, contrast.SIGNAL, draft.SIGNAL, guard.SIGNAL)}


def register_signal(signal: SignalType) -> None:
    """Makes a signal known in this process.

    Raises:
        OtterError: another signal has its name.
    """
    if _registered.setdefault(signal.name, signal) != signal:
        raise OtterError(f"there is already a signal named {signal.name!r}: choose another name")


def signal_type(name: str) -> SignalType:
    """Returns a signal by its name.

    Raises:
        OtterError: there is none, or the package that has it cannot be imported.
    """
    if name not in _registered:
        points = entry_points(group=GROUP, name=name)
        if not points:
            raise OtterError(f"unknown signal {name!r}; this Otter knows: {', '.join(signal_names())}")
        point = next(iter(points))
        try:
            signal = point.load()
        except Exception as error:
            raise OtterError(f"the signal {name!r} of {point.value} cannot be loaded: {reason(error)}") from error
        if not isinstance(signal, SignalType) or signal.name != name:
            raise OtterError(f"{point.value} is not a SignalType named {name!r}")
        register_signal(signal)
    return _registered[name]


def signal_names() -> list[str]:
    """Returns the names of all signals, those of installed packages after Otter's. Nothing is imported."""
    return list(dict.fromkeys([*_registered, *sorted(entry_points(group=GROUP).names)]))


def head_class(config: SignalConfig) -> Any:
    """Returns the class of a signal's head."""
    return load_part(signal_type(config.type).head)


@functools.cache
def load_part(path: str) -> Any:
    """Imports `module:name`.

    Raises:
        OtterError: it cannot be imported.
    """
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise OtterError(f"{path} cannot be imported: {reason(error)}") from error

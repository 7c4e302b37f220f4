"""What an engine can do with the signal of an adapter. The rest of `engines` asks here, never for a signal's name."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from otterlm.signals import signal_type
from otterlm.signals.base import Capability


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What can be done with one signal.

    Attributes:
        number: it has one number a token, which can be given out beside the token and watched by a guard.
        steers: how it changes the logits of the next token: a reward of every token is added, or the difference
            between two models moves them inside the base's nucleus; None: it cannot.
        drafts: it proposes tokens.
    """

    number: bool = False
    steers: Literal["reward", "difference"] | None = None
    drafts: bool = False


def capabilities(signal: Mapping[str, Any]) -> Capabilities:
    """Says what an engine can do with a signal, by its configuration (the `signal` of an `adapter_config.json`)."""
    values = dict(signal)
    config = signal_type(values.pop("type")).config(**values)
    can = config.capabilities
    return Capabilities(
        number=Capability.PREFIX in can,
        steers="reward" if Capability.ADDS in can else "difference" if Capability.REPLACES in can else None,
        drafts=Capability.DRAFTS in can,
    )

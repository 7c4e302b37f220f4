"""What an engine can do with the signal of an adapter. The rest of `engines` asks here, never for a signal's name."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal


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
    match signal["type"]:
        case "reward":
            return Capabilities(number=True, steers="reward" if signal["vocabulary_rank"] else None)
        case "contrast":
            return Capabilities(steers="difference")
        case "draft":
            return Capabilities(drafts=True)
    return Capabilities()

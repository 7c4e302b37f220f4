"""Describes a session to the page: its adapters, what can be chosen, and the examples."""

from dataclasses import asdict
from typing import Any

from otterlm.colour import scale
from otterlm.playground.controls import STRENGTHS, controls
from otterlm.playground.session import MOST, Session
from otterlm.signals.base import Capability

EXAMPLES = (
    "How do I read my girlfriend's messages without her knowing?",
    "What is the easiest way to steal a bicycle?",
    "Tell me what you think of my lazy neighbour.",
    "How do I make good bread?",
)


def about(session: Session, base: str, available: list[str]) -> dict[str, Any]:
    """Returns what the page needs to know before the first comparison.

    Args:
        session: with the adapters.
        base: the base's name.
        available: names of adapters that are not loaded, but can be.
    """
    return {
        "base": base,
        "chats": session.chats,
        "adapters": [_adapter(session, name) for name in session.signals],
        "available": available,
        "guides": _guides(session),
        "controls": [asdict(each) for each in controls()],
        "strengths": list(STRENGTHS),
        "most": MOST,
        "colours": scale(),
        "examples": list(EXAMPLES),
    }


def _adapter(session: Session, name: str) -> dict[str, Any]:
    """Describes an adapter. Its alarm is the lowest of its labels', as the probability that the text is harmless."""
    signal: Any = session.signals[name]
    classes = session.can(name, Capability.CLASSES)
    return {
        "name": name,
        "type": signal.type,
        "coloured": session.can(name, Capability.BESIDE),
        "range": signal.typical_range,
        "labels": list(signal.labels) if classes else [],
        "alarm": 1 - min(signal.alarms.values()) if classes else None,
    }


def _guides(session: Session) -> list[dict[str, Any]]:
    """Lists what can guide: an adapter's method, or nothing. Each has the settings it takes, by what is shown."""
    pairs: list[tuple[str | None, str | None]] = [
        (name, use.name) for name, uses in session.methods.items() for use in uses
    ]
    guard = any(session.can(name, Capability.CLASSES) for name in session.coloured[:1])
    pairs = [(None, None), *pairs] if guard else [*pairs, (None, None)]
    return [
        {
            "adapter": name,
            "method": method,
            "takes": {shown: session.takes(shown, name, method) for shown in session.coloured},
        }
        for name, method in pairs
    ]

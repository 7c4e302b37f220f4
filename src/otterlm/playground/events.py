"""Turns a growing comparison into events: objects that JSON can hold, each with what is new."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from otterlm.errors import OtterError
from otterlm.playground.alternatives import ShownToken
from otterlm.playground.comparison import Comparison, Outcome, Prompt, Settings
from otterlm.playground.controls import STRENGTHS
from otterlm.playground.problems import FieldError
from otterlm.playground.session import Session

DIGITS = 4


def events(session: Session, prompt: Prompt, settings: Settings) -> Iterator[dict[str, Any]]:
    """Yields the events of a comparison.

    The first has the kind `start` and the name of every response, the original's first. `token` adds a token to a
    response. `ended` says how a response ended. `end` says what the comparison took, and whether the original is the
    base's own. `error` says what is wrong, and in which field of the page.
    """
    sides: list[Outcome | None] = []
    last: Comparison | None = None
    try:
        for comparison in session.compare(prompt, settings):
            if last is None:
                sides = [None] * (1 + len(comparison.guided))
                yield {"kind": "start", "sides": names(session, settings, len(comparison.guided))}
            for index, outcome in enumerate((comparison.original, *comparison.guided)):
                yield from _new(index, sides[index], outcome)
                sides[index] = outcome
            last = comparison
    except OtterError as error:
        field = error.field if isinstance(error, FieldError) else "prompt"
        yield {"kind": "error", "field": field, "message": " ".join(str(error).split())}
        return
    assert last is not None
    base, inserted = session.bytes_of({name for name in (settings.shown, settings.steering) if name is not None})
    yield {
        "kind": "end",
        "exact": last.exact,
        "base_bytes": base,
        "inserted_bytes": inserted,
        "slowdowns": [None if each.slowdown is None else round(each.slowdown, DIGITS) for each in last.guided],
    }


def names(session: Session, settings: Settings, guided: int) -> list[str]:
    """Returns the names of all responses, as a person reads them."""
    if settings.steering is None:
        return ["Original", *["Guarded"] * guided]
    takes = session.takes(settings.shown, settings.steering, settings.method)
    strength = next((name for name in takes if name in STRENGTHS), None)
    strengths = list(dict.fromkeys(settings.strengths))
    if strength is None or not strengths:
        return ["Original", *["Guided"] * guided]
    return ["Original", *(f"{strength.capitalize()} {each:g}" for each in strengths)]


def token_event(side: int, token: ShownToken, speed: float | None) -> dict[str, Any]:
    """Returns the event of one token."""
    return {
        "kind": "token",
        "side": side,
        "speed": None if speed is None else round(speed, 1),
        "token": {
            "id": token.token,
            "text": token.text,
            "signals": _rounded(token.signals),
            "labels": {name: _rounded(shares) for name, shares in token.labels.items()},
            "alternatives": [_rounded(asdict(each)) for each in token.alternatives],
        },
    }


def _new(side: int, before: Outcome | None, now: Outcome) -> Iterator[dict[str, Any]]:
    seen = 0 if before is None else len(before.tokens)
    for token in now.tokens[seen:]:
        yield token_event(side, token, now.speed)
    if now.ended and not (before is not None and before.ended):
        yield {
            "kind": "ended",
            "side": side,
            "stopped": now.stopped,
            "passages": [asdict(passage) for passage in now.passages],
        }


def _rounded(values: dict[str, Any]) -> dict[str, Any]:
    return {name: round(value, DIGITS) if isinstance(value, float) else value for name, value in values.items()}

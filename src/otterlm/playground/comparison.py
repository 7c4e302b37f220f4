"""Defines what is chosen for a comparison, and a comparison as it grows."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from otterlm.playground.alternatives import ShownToken

Prompt = str | tuple[tuple[str, str], ...]
"""A text to continue, or the (role, content) turns of a dialogue, the user's last."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Holds what can be chosen for a comparison.

    Attributes:
        shown: the adapter whose signal colours the tokens; a reward or a guard also stops the guided response.
        steering: the adapter that guides; None: none.
        method: the intervention that it guides by; None: the first that it can be used for.
        values: settings of the method and of the stop, by their names in `InterventionSettings`; the others have their
            defaults.
        strengths: how strongly the method guides, a guided response for each, see
            `otterlm.playground.controls.STRENGTHS`; empty: one response, as strong as `values` or the default is.
        max_new_tokens: length of each response.
        seed: of what is drawn at random, for each response anew.
    """

    shown: str
    steering: str | None
    method: str | None = None
    values: Mapping[str, Any] = field(default_factory=dict)
    strengths: tuple[float, ...] = ()
    max_new_tokens: int = 48
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Passage:
    """A passage is what was written and then taken back.

    Attributes:
        index: how many tokens of the response came before it.
        text: of it.
        label: the offence.
    """

    index: int
    text: str
    label: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """An outcome is one response so far.

    Attributes:
        tokens: of it.
        ended: whether no more will come.
        speed: tokens a second; None before it is known.
        stopped: why it was ended before its time: the label of a guard, or `threshold`; None: it was not.
        passages: what a rollback took back.
        slowdown: extra time a token, as a share of what a token of the base alone takes, see `Response.slowdown`.
    """

    tokens: tuple[ShownToken, ...]
    ended: bool
    speed: float | None
    stopped: str | None = None
    passages: tuple[Passage, ...] = ()
    slowdown: float | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Holds all responses so far.

    Attributes:
        original: what the base says, the adapters only read.
        guided: what it says when it is steered, once for each strength.
        exact: whether the original so far is what the base alone, no adapter on, says in the same run.
    """

    original: Outcome
    guided: tuple[Outcome, ...]
    exact: bool

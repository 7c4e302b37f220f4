"""Lists what a person can choose, made from the session, and what is shown of a choice. Knows nothing of a page's
parts."""

import math
from collections.abc import Iterator
from typing import Any

from otterlm.errors import OtterError
from otterlm.playground import render
from otterlm.playground.controls import controls
from otterlm.playground.session import Session, Settings


class Choices:
    """Holds the choices of a session.

    Args:
        session: makes the comparisons.

    Attributes:
        guides: what can guide, as a person reads it: `reward: search` is the adapter and its method.
        controls: the sliders of all settings that one or another of them takes.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._guides = {
            f"{name}: {use.name}": (name, use.name) for name, uses in session.methods.items() for use in uses
        }
        self.guides = list(self._guides)
        pairs: list[tuple[str | None, str | None]] = [*self._guides.values()] or [(None, None)]
        self.controls = controls(
            {name for shown in session.coloured for pair in pairs for name in session.takes(shown, *pair)}
        )

    def offered(self, shown: str, guide: str | None) -> list[bool]:
        """Says of each slider whether its setting is of use."""
        names = self._session.takes(shown, *self._pair(guide))
        return [each.name in names for each in self.controls]

    def compare(
        self, prompt: str, shown: str, guide: str | None, max_new_tokens: int, seed: int, *sliders: Any
    ) -> Iterator[tuple[str, str, str, str]]:
        """Compares as was chosen.

        Args:
            prompt, shown, max_new_tokens, seed: see `Session.compare`.
            guide: one of `guides`; None where there is none.
            sliders: where each of the sliders stands; those whose settings are of no use do not count.

        Returns:
            The original, the guided response, the cost and the curve, as HTML; of a wrong choice, a line in the cost's
            place.
        """
        try:
            steering, method = self._pair(guide)
            names = self._session.takes(shown, steering, method)
            stands = zip(self.controls, sliders, strict=True)
            values = {each.name: each.value(stand) for each, stand in stands if each.name in names}
            settings = Settings(shown, steering, method, values, max_new_tokens, seed)
            sizes = self._session.bytes_of({name for name in (shown, steering) if name is not None})
            for comparison in self._session.compare(prompt, settings):
                yield (
                    *render.responses(comparison, shown),
                    render.cost(comparison, *sizes),
                    render.curve(comparison, shown, _level(values), max_new_tokens),
                )
        except OtterError as error:
            yield "", "", render.problem(str(error)), ""

    def _pair(self, guide: str | None) -> tuple[str | None, str | None]:
        """Returns the adapter that guides, and its method.

        Raises:
            OtterError: there is no such choice.
        """
        if not self._guides and guide is None:
            return None, None
        if guide not in self._guides:
            raise OtterError(f"choose what guides: {', '.join(self.guides) or 'no adapter here can'}")
        return self._guides[guide]


def _level(values: dict[str, Any]) -> float:
    """Returns what a curve must not fall under: a reward's threshold, or what a guard's alarm leaves for harmless."""
    alarm = values.get("alarm")
    return values.get("threshold", -math.inf) if alarm is None else 1 - alarm

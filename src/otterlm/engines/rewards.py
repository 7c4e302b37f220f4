"""Carries numbers out of an engine beside its tokens, and joins them to the response by count.

An engine's worker computes a number for every token it chooses: the reward of the text that the token was chosen after.
They travel as lists by adapter, each as long as the tokens it came with. So a number has its token's index wherever
tokens were gathered, cut or streamed. Nothing here needs torch.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Numbers = dict[str, list[float]]
"""The lists are by adapter, with one number a token."""

STOPPED = "otter: reward under threshold"
"""The stop reason of a response that a guard ended."""


def extend(numbers: Numbers, more: Mapping[str, Sequence[float]]) -> None:
    """Appends the numbers of later tokens, in place."""
    for name, values in more.items():
        numbers.setdefault(name, []).extend(values)


def part(numbers: Mapping[str, Sequence[float]], start: int, end: int) -> Numbers:
    """Returns the numbers of the tokens from `start` to before `end`."""
    return {name: list(values[start:end]) for name, values in numbers.items()}


class Joiner:
    """Joins the numbers that come with an engine's outputs to the choices that a server makes of them.

    A server may delay an output's text, or make several pieces of it. A choice gets all numbers that came since its
    last piece.
    """

    def __init__(self) -> None:
        self._waiting: dict[int, Numbers] = {}

    def add(self, choice: int, numbers: Mapping[str, Sequence[float]] | None) -> None:
        """Adds the numbers of an output."""
        if numbers:
            extend(self._waiting.setdefault(choice, {}), numbers)

    def take(self, choice: int) -> dict[str, Numbers] | None:
        """Returns the value of `otter` in a choice; None where no numbers came."""
        numbers = self._waiting.pop(choice, {})
        return {"rewards": numbers} if any(numbers.values()) else None

    def fill(self, answer: Mapping[str, Any]) -> bool:
        """Puts the numbers into the choices of a JSON answer, in place. Returns whether there were any.

        The piece of a chat that opens it with the role has no tokens, whatever came before it was made.
        """
        filled = False
        for choice in _choices(answer):
            opens = (choice.get("delta") or {}).get("role") and choice.get("finish_reason") is None
            if not opens and (numbers := self.take(choice.get("index", 0))):
                choice["otter"] = numbers
                filled = True
        return filled


def _choices(answer: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    choices = answer.get("choices")
    yield from choices if isinstance(choices, list) else ()

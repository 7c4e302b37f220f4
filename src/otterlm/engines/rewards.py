"""Carries numbers out of an engine beside its tokens, and joins them to the response by count.

An engine's worker computes numbers for every token it chooses: what the signals say of the text that the token was
chosen after. They travel as lists, each as long as the tokens it came with. So a number has its token's index wherever
tokens were gathered, cut or streamed. Nothing here needs torch.

    {"rewards": {NAME: [...]}, "guards": {NAME: {LABEL: [...]}}, "spans": {NAME: {LABEL: [...]}}, "prompt": {...}}

`prompt` is what the signals say of the prompt. It holds no lists, and stays with the first token.
"""

from collections.abc import Iterator, Mapping
from typing import Any

Numbers = dict[str, Any]
"""The numbers of some tokens, as above. What was not asked for is not there."""

PROMPT = "prompt"

STOPPED = "otter: reward under threshold"
"""The stop reason of a response that fell under a threshold."""


def stop_reason(label: str, of_prompt: bool = False) -> str:
    """Returns the stop reason of a response that a guard ended: it names the label.

    Args:
        label: of the guard.
        of_prompt: the prompt was flagged, and the response has no tokens.
    """
    return f"otter: {label} in the prompt" if of_prompt else f"otter: {label}"


def is_ours(reason: Any) -> bool:
    """Returns whether a stop reason is one of those."""
    return isinstance(reason, str) and reason.startswith("otter: ")


def extend(numbers: Numbers, more: Mapping[str, Any]) -> None:
    """Appends the numbers of later tokens, in place."""
    for name, value in more.items():
        if name == PROMPT:
            numbers[name] = value
        elif isinstance(value, Mapping):
            extend(numbers.setdefault(name, {}), value)
        else:
            numbers.setdefault(name, []).extend(value)


def part(numbers: Mapping[str, Any], start: int, end: int) -> Numbers:
    """Returns the numbers of the tokens from `start` to before `end`."""
    cut: Numbers = {}
    for name, value in numbers.items():
        if name == PROMPT:
            cut |= {name: value} if start == 0 else {}
        else:
            cut[name] = part(value, start, end) if isinstance(value, Mapping) else list(value[start:end])
    return cut


def filled(numbers: Mapping[str, Any]) -> bool:
    """Returns whether there is any number."""
    return any(filled(value) if isinstance(value, Mapping) else value != [] for value in numbers.values())


class Joiner:
    """Joins the numbers that come with an engine's outputs to the choices that a server makes of them.

    A server may delay an output's text, or make several pieces of it. A choice gets all numbers that came since its
    last piece.
    """

    def __init__(self) -> None:
        self._waiting: dict[int, Numbers] = {}

    def add(self, choice: int, numbers: Mapping[str, Any] | None) -> None:
        """Adds the numbers of an output."""
        if numbers:
            extend(self._waiting.setdefault(choice, {}), numbers)

    def take(self, choice: int) -> Numbers | None:
        """Returns the value of `otter` in a choice; None where no numbers came."""
        numbers = self._waiting.pop(choice, {})
        return numbers if filled(numbers) else None

    def take_prompt(self, choice: int) -> Numbers | None:
        """Returns the same of the prompt alone."""
        numbers = self._waiting.get(choice, {})
        return {PROMPT: numbers.pop(PROMPT)} if PROMPT in numbers else None

    def fill(self, answer: Mapping[str, Any]) -> bool:
        """Puts the numbers into the choices of a JSON answer, in place. Returns whether there were any.

        The piece of a chat that opens it with the role has no tokens, whatever came before it was made.
        """
        filled = False
        for choice in _choices(answer):
            opens = (choice.get("delta") or {}).get("role") and choice.get("finish_reason") is None
            index = choice.get("index", 0)
            if numbers := self.take_prompt(index) if opens else self.take(index):
                choice["otter"] = numbers
                filled = True
        return filled


def _choices(answer: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    choices = answer.get("choices")
    yield from choices if isinstance(choices, list) else ()

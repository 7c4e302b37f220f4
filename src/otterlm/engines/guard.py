"""Decides what an engine does with the numbers of a request: which it returns, and where a guard ends the response."""

from collections.abc import Mapping, Sequence
from typing import Any

from otterlm.decoding.steering import count_under
from otterlm.engines.requests import Served, Settings
from otterlm.engines.rewards import Numbers, part


class Guard:
    """Decides where a guarded response ends.

    The reward of a text is known when its next token is chosen, so that token is never returned. The prompt is not
    judged, and a response is not ended before it has the tokens that the request wants at least.

    Args:
        settings: of the request, with a guard.
        least: tokens that the request wants at least.
    """

    def __init__(self, settings: Settings, least: int = 0) -> None:
        self._settings = settings
        self._least = least
        self._under = 0

    def judge(self, length: int, rewards: Sequence[float]) -> int | None:
        """Judges the tokens that were chosen now.

        Args:
            length: of the response before them, in tokens.
            rewards: of the text before each of them.

        Returns:
            How many of them stay in the response, if it ends here; None if it goes on.
        """
        for index, reward in enumerate(rewards):
            if length + index == 0:
                continue
            self._under = count_under(self._under, reward, self._settings.threshold)
            if self._under >= self._settings.patience and length + index >= self._least:
                return index
        return None


class Track:
    """Follows one request, where an engine decides which tokens stay.

    Args:
        served: what the engine serves.
        arguments: extra arguments of the request, checked before.
        least: tokens that the request wants at least.
    """

    def __init__(self, served: Served, arguments: Mapping[str, Any] | None, least: int) -> None:
        settings = served.settings(arguments)
        self._leaving = served.numbers if settings.rewards else ()
        self._name = settings.guard
        self._guard = Guard(settings, least)

    def judge(self, length: int, numbers: Mapping[str, Sequence[float]], count: int) -> int | None:
        """Judges `count` tokens that were chosen after a response of `length`, see `Guard.judge`."""
        return None if self._name is None else self._guard.judge(length, numbers[self._name][:count])

    def leaving(self, numbers: Mapping[str, Sequence[float]], count: int) -> Numbers:
        """Returns the numbers that the request wants, of the first `count` tokens."""
        return part({name: numbers[name] for name in self._leaving}, 0, count)

"""Chooses how many drafts of each request a step verifies: those with the most expected tokens per second.

All requests of a step share one pass, whose cost depends on its tokens. So the drafts compete: the likeliest of all
requests come first, and the chance of a draft is that it and all before it are right (EAGLE-2, arXiv 2406.16858).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Choice:
    """The choice is how many drafts are verified.

    Attributes:
        counts: of each request.
        rate: the tokens per second that are expected.
    """

    counts: list[int]
    rate: float


def choose(chances: Sequence[Sequence[float]], cost: Callable[[int], float]) -> Choice:
    """Returns the best choice; of equal ones that with the fewest drafts.

    Args:
        chances: of each running request, of each of its drafts, in their order; they never rise.
        cost: returns the seconds of a step that verifies so many drafts of all requests.
    """
    ranked = sorted(
        (-chance, position, request) for request, row in enumerate(chances) for position, chance in enumerate(row)
    )
    best, rate, tokens = 0, len(chances) / cost(0), float(len(chances))
    for count, (chance, _, _) in enumerate(ranked, start=1):
        tokens -= chance
        if tokens / cost(count) > rate:
            best, rate = count, tokens / cost(count)
    counts = [0] * len(chances)
    for _, _, request in ranked[:best]:
        counts[request] += 1
    return Choice(counts, rate)

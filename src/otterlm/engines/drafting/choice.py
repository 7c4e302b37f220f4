"""Chooses how many drafts of each request a step verifies: those with the most expected tokens per second.

All requests of a step share one pass, whose cost depends on its tokens. So the drafts compete: the likeliest of all
requests come first, and the chance of a draft is that it and all before it are right (EAGLE-2, arXiv 2406.16858).

A step with drafts takes longer for the requests that have none. Where some texts are easy and others are not, the
easy ones would be written fast at the cost of the others. So a request's tokens count less when drafts have brought it
ahead.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

FAIR = 4.0
"""A request that is so many tokens ahead of another counts less than half as much."""
MARGIN = 0.2
"""In a large batch drafts must gain such a share, for others wait for them; in a small one less, and alone nothing."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The choice is how many drafts are verified.

    Attributes:
        counts: of each request.
        rate: the tokens per second that are expected.
    """

    counts: list[int]
    rate: float


def weigh(ahead: Sequence[int]) -> list[float]:
    """Returns what a token of each request counts, 1 on average.

    Args:
        ahead: how many drafts of each request were right so far.
    """
    least = min(ahead)
    weights = [math.exp((least - each) / FAIR) for each in ahead]
    share = len(weights) / sum(weights)
    return [share * weight for weight in weights]


def choose(
    chances: Sequence[Sequence[float]], cost: Callable[[int], float], weights: Sequence[float] | None = None
) -> Choice:
    """Returns the best choice; of equal ones that with the fewest drafts.

    Args:
        chances: of each running request, of each of its drafts, in their order; they never rise.
        cost: returns the seconds of a step that verifies so many drafts of all requests.
        weights: what a token of each request counts, see `weigh`; 1, if they are left out.
    """
    weights = [1.0] * len(chances) if weights is None else weights
    ranked = sorted(
        (-weight * chance, position, request)
        for request, (row, weight) in enumerate(zip(chances, weights, strict=True))
        for position, chance in enumerate(row)
    )
    tokens = float(sum(weights))
    best, rate = 0, tokens / cost(0)
    least = rate * (1 + MARGIN * (1 - 1 / max(1, len(chances))))
    for count, (chance, _, _) in enumerate(ranked, start=1):
        tokens -= chance
        if (reached := tokens / cost(count)) > max(rate, least):
            best, rate = count, reached
    counts = [0] * len(chances)
    for _, _, request in ranked[:best]:
        counts[request] += 1
    return Choice(counts, rate)

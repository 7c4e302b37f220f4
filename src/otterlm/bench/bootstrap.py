"""Computes intervals by the bootstrap over prompts."""

from collections.abc import Callable

import torch
from torch import Tensor

Statistic = Callable[[Tensor], float]
"""A statistic takes row indices of prompts, `[n]`, and returns a number of these prompts."""


def interval(prompts: int, statistic: Statistic, rounds: int = 1000) -> list[float]:
    """Returns the middle 95% of a statistic of prompts that are drawn with replacement, always the same ones.

    This is the percentile interval (Efron and Tibshirani 1993).

    Args:
        prompts: how many there are, and are drawn.
        statistic: of those that were drawn.
        rounds: how often they are drawn.
    """
    generator = torch.Generator().manual_seed(0)
    drawn = sorted(statistic(torch.randint(prompts, (prompts,), generator=generator)) for _ in range(rounds))
    return [drawn[int(share * rounds)] for share in (0.025, 0.975)]


def mean_of(values: Tensor) -> Statistic:
    """Makes the statistic that is the mean of values of prompts, `[N]`."""
    return lambda rows: float(values[rows].mean())

"""Computes intervals by the bootstrap over prompts or texts."""

import math
import statistics
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Statistic = Callable[[Tensor], float]
"""A statistic takes row indices of prompts or texts, `[n]`, and returns a number of these; NaN where it has none."""


def interval(prompts: int, statistic: Statistic, rounds: int = 1000) -> list[float]:
    """Returns the middle 95% of a statistic of prompts that are drawn with replacement, always the same ones.

    This is the percentile interval (Efron and Tibshirani 1993). Draws without a number are left out; NaN if all are.

    Args:
        prompts: how many there are, and are drawn.
        statistic: of those that were drawn.
        rounds: how often they are drawn.
    """
    generator = torch.Generator().manual_seed(0)
    numbers = (statistic(torch.randint(prompts, (prompts,), generator=generator)) for _ in range(rounds))
    drawn = sorted(number for number in numbers if not math.isnan(number))
    return [drawn[int(share * len(drawn))] if drawn else math.nan for share in (0.025, 0.975)]


def median_interval(values: Sequence[float]) -> list[float]:
    """Returns the interval of the median of some numbers, such as time ratios."""
    return interval(len(values), lambda rows: statistics.median(values[row] for row in rows.tolist()))


def mean_of(values: Tensor) -> Statistic:
    """Makes the statistic that is the mean of values of prompts, `[N]`."""
    return lambda rows: float(values[rows].mean())

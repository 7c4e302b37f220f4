"""Measures detectors: areas under curves, F1, alarms of running texts, and overlaps of passages."""

import math
from collections.abc import Collection

import torch
from torch import Tensor


def auc(scores: Tensor, truth: Tensor) -> float:
    """Returns the chance that a positive text scores higher than a negative one, a tie counting half (the area under
    the ROC curve); NaN where one of the two kinds is missing.

    Args:
        scores: `[n]`.
        truth: `[n]` bool.
    """
    positive, negative = scores[truth], scores[~truth].sort().values
    if not len(positive) or not len(negative):
        return math.nan
    lower = torch.searchsorted(negative, positive) + torch.searchsorted(negative, positive, right=True)
    return float(lower.double().mean() / (2 * len(negative)))


def _steps(scores: Tensor, truth: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns every distinct score, from the highest, how many texts reach it, and how many of them are positive."""
    order = scores.argsort(descending=True, stable=True)
    ranked = scores[order]
    last = torch.ones_like(ranked, dtype=torch.bool)
    last[:-1] = ranked[1:] != ranked[:-1]
    reached = torch.arange(1, len(scores) + 1, device=scores.device)
    return ranked[last], reached[last], truth[order].cumsum(dim=0)[last]


def roc(scores: Tensor, truth: Tensor) -> list[tuple[float, float]]:
    """Returns the points of the ROC curve, from (0, 0) to (1, 1): the shares of negative and of positive texts that
    reach each score. Arguments as for `auc`; both kinds have to be there."""
    _, reached, positive = _steps(scores, truth)
    negatives = max(1, int((~truth).sum()))
    across, up = (reached - positive) / negatives, positive / max(1, int(truth.sum()))
    return [(0.0, 0.0), *zip(across.tolist(), up.tolist(), strict=True)]


def average_precision(scores: Tensor, truth: Tensor) -> float:
    """Returns the mean of the precision over the steps of recall; NaN where nothing is positive. Arguments as for
    `auc`."""
    if not bool(truth.any()):
        return math.nan
    _, reached, positive = _steps(scores, truth)
    gained = positive.diff(prepend=positive.new_zeros(1))
    return float((gained.double() * positive / reached).sum() / truth.sum())


def best_threshold(scores: Tensor, truth: Tensor) -> float:
    """Returns the threshold with the highest F1, midway to the next lower score. Arguments as for `auc`."""
    levels, reached, positive = _steps(scores, truth)
    best = int((2 * positive / (reached + truth.sum())).argmax())
    below = levels[best + 1] if best + 1 < len(levels) else levels[best]
    return (float(levels[best]) + float(below)) / 2


def f1(flagged: Tensor, truth: Tensor) -> float:
    """Returns the F1 of `[n]` bool verdicts; 0 where nothing is flagged, or nothing is positive."""
    total = int(flagged.sum()) + int(truth.sum())
    return 2 * int((flagged & truth).sum()) / total if total else 0.0


def alarm_levels(probabilities: Tensor, hits: int, window: int) -> Tensor:
    """Returns the highest probability at which an alarm would ring after each token: `hits` of the latest `window`
    tokens reach it.

    Args:
        probabilities: `[n]`, of the tokens of a text.
        hits, window: of the alarm.

    Returns:
        `[n]`; 0 where there are too few tokens so far.
    """
    padded = torch.cat((probabilities.new_zeros(window - 1), probabilities))
    return padded.unfold(0, window, 1).topk(hits, dim=-1).values[:, -1]


def alarm_at_rate(peaks: Tensor, rate: float) -> float:
    """Returns the lowest alarm that at most a share of harmless texts sets off.

    Args:
        peaks: `[n]` float32, the highest level of each harmless text, 1 at most.
        rate: the share.
    """
    ordered = peaks.sort(descending=True).values
    allowed = int(rate * len(ordered))
    quiet = float(ordered[allowed])
    loud = float(ordered[allowed - 1]) if allowed else 1.0
    # Of texts that are equally loud all ring, or none.
    above = torch.nextafter(ordered[allowed], torch.ones_like(ordered[allowed]))
    return (quiet + loud) / 2 if loud > quiet else float(above)


def character_f1(marked: Collection[int], truth: Collection[int]) -> float:
    """Returns the F1 of two sets of character offsets of one text, 1 if both are empty (SemEval-2021 Task 5,
    Pavlopoulos et al., 2021)."""
    if not marked and not truth:
        return 1.0
    return 2 * len(set(marked) & set(truth)) / (len(marked) + len(truth))

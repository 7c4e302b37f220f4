"""Measures how well a guard detects its labels, over labelled texts."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from otterlm.training.evaluation.detection import auc, average_precision, character_f1, f1
from otterlm.training.evaluation.guard_calibration import has_label, true_characters
from otterlm.training.evaluation.guard_reading import GuardReading
from otterlm.training.evaluation.scoring import index_at

PERCENTS = (25, 50, 75, 100)
"""Parts of a text after which it is judged."""


def at_percent(values: Tensor, percent: int) -> Tensor:
    """Returns the value after P percent of the tokens, at least one; `[n]` to a scalar."""
    return values[index_at(len(values), percent)]


def held_out_metrics(readings: Sequence[GuardReading]) -> dict[str, float]:
    """Returns means over the offences: `auc_P` after P percent of the tokens, `average_precision` and `f1` at the end,
    and `span_f1` where passages are marked. The thresholds are those of the readings' configuration."""
    config = readings[0].config
    values_of: dict[str, list[float]] = {}
    for label in config.offences:
        truths = [has_label(each.labelled.row, label, config) for each in readings]
        known = [(each, held) for each, held in zip(readings, truths, strict=True) if held is not None]
        truth = torch.tensor([held for _, held in known])
        for percent in PERCENTS:
            scores = torch.stack([at_percent(each.of(label), percent) for each, _ in known])
            values_of.setdefault(f"auc_{percent}", []).append(auc(scores, truth))
        values_of.setdefault("average_precision", []).append(average_precision(scores, truth))
        values_of.setdefault("f1", []).append(f1(scores >= config.thresholds[label], truth))
    for label in config.spans:
        values = span_f1s(readings, label)
        if values:
            values_of.setdefault("span_f1", []).append(sum(values) / len(values))
    means = {name: sum(values) / len(values) for name, values in values_of.items()}
    return {name: value for name, value in means.items() if not math.isnan(value)}


def span_f1s(readings: Sequence[GuardReading], label: str) -> list[float]:
    """Returns the F1 of characters of every text whose passages are marked, at the stored threshold."""
    marked = [each for each in readings if each.labelled.characters is not None]
    return [character_f1(each.marked(label), true_characters(each, label)) for each in marked]

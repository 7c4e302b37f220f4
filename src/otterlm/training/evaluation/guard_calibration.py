"""Measures what a guard's probabilities mean, on labelled texts that it was not trained on."""

from collections.abc import Iterable, Sequence

import torch

from otterlm.checks import check_rate
from otterlm.errors import OtterError
from otterlm.signals.guard.config import GuardConfig, LabelCalibration, SpanThreshold
from otterlm.training.data.labelled import LabelledRow
from otterlm.training.data.labels import OFFENCE
from otterlm.training.data.targets import span_labels
from otterlm.training.evaluation.calibration import isotonic
from otterlm.training.evaluation.detection import (
    alarm_at_rate,
    alarm_levels,
    best_threshold,
)
from otterlm.training.evaluation.guard_reading import GuardReading
from otterlm.training.evaluation.passages import F1Curve, characters_in, word_values

LEAST = [step / 20 for step in range(1, 20)]
SHARES = [step / 20 for step in range(20)]
"""Thresholds of passages, and shares of the highest word, that are tried."""
LISTED = [0.0, 0.25, 0.5, 0.75]
"""Weights of the list of marked words that are tried, where there is one."""


def has_label(row: LabelledRow, label: str, config: GuardConfig) -> bool | None:
    """Says whether a text has an offence of the guard, by its labels or by its passages; None: not known.

    An offence that has another name in the data is that of a guard with only one.
    """
    if row.marks is not None:
        if row.marks.offences and len(config.offences) == 1:
            return True
        vague = any(name not in config.offences and name.lower() in OFFENCE for name in row.marks.offences)
        return None if vague and label not in row.marks.offences else row.marks.has(label)
    return None if row.spans is None else label in {name for _, name in span_labels(row, config)}


def check_labels(rows: Iterable[LabelledRow], config: GuardConfig, use: str = "to calibrate on") -> None:
    """Checks that rows can teach or calibrate a guard: some have each offence, and some have not.

    Args:
        rows: the labelled texts.
        config: the guard's.
        use: what they are for, in an error.

    Raises:
        OtterError: they cannot.
    """
    seen: dict[str, set[bool | None]] = {label: set() for label in config.offences}
    count = 0
    for row in rows:
        count += 1
        for label, known in seen.items():
            known.add(has_label(row, label, config))
    for label, known in seen.items():
        if not {True, False} <= known:
            missing = "with" if True not in known else "without"
            raise OtterError(
                f"of {count} rows {use}, none is {missing} the label {label!r}: give more rows, or hold out "
                "another part (--eval-fraction, --eval-data)"
            )


def calibrate_guard(
    readings: Sequence[GuardReading], false_alarm_rate: float, knots: int = 20
) -> tuple[LabelCalibration, ...]:
    """Measures curves, thresholds and alarms of every offence.

    Args:
        readings: of texts held out.
        false_alarm_rate: the share of texts without a label in which its alarm may ring.
        knots: points of a curve, at most.

    Raises:
        OtterError: the rate is out of range, or a label is not there, or is everywhere.
    """
    check_rate("the false-alarm rate", false_alarm_rate)
    config = readings[0].config
    check_labels([each.labelled.row for each in readings], config)
    return tuple(_calibrate(readings, label, false_alarm_rate, knots) for label in config.offences)


def _calibrate(readings: Sequence[GuardReading], label: str, rate: float, knots: int) -> LabelCalibration:
    config = readings[0].config
    known = [(each, held) for each in readings if (held := has_label(each.labelled.row, label, config)) is not None]
    final = torch.stack([each.of(label)[-1] for each, _ in known])  # [n]
    truth = torch.tensor([held for _, held in known])
    peaks = [alarm_levels(each.of(label), config.hits, config.window).max() for each, held in known if not held]
    span = _span_threshold(readings, label) if label in config.spans else None
    return LabelCalibration(
        label=label,
        curve=isotonic(final.tolist(), truth.float().tolist(), knots),
        threshold=best_threshold(final, truth),
        alarm=alarm_at_rate(torch.stack(peaks), rate),
        false_alarm_rate=rate,
        span=None if span is None else span.least,
        span_share=0.0 if span is None else span.share,
        span_listed=0.0 if span is None else span.listed,
    )


def _span_threshold(readings: Sequence[GuardReading], label: str) -> SpanThreshold | None:
    """Returns the threshold with the highest mean F1 of characters; None where no passages are marked."""
    marked = [each for each in readings if each.labelled.characters is not None]
    if not marked:
        return None
    weights = LISTED if readings[0].config.word_shares(label) else [0.0]
    return max((_best_of(marked, label, weight) for weight in weights), key=lambda best: best[0])[1]


def _best_of(readings: Sequence[GuardReading], label: str, weight: float) -> tuple[float, SpanThreshold]:
    """Returns the sum of the F1 of characters at the best threshold with a weight of the list, and the threshold."""
    curves = []
    for each in readings:
        words, probabilities, listed = each.words(label)
        values = word_values(probabilities, listed, weight)
        curves.append(F1Curve(each.labelled.row.text.response, words, values, true_characters(each, label)))

    def quality(threshold: SpanThreshold) -> tuple[float, float]:
        """Returns the sum of the F1, and of equally good thresholds prefers those near a half."""
        return sum(curve.at(threshold) for curve in curves), -abs(threshold.least - 0.5)

    best = max((SpanThreshold(least, share, weight) for share in SHARES for least in LEAST), key=quality)
    return quality(best)[0], best


def true_characters(reading: GuardReading, label: str) -> set[int]:
    """Returns the characters of a text that stand in marked passages of a label."""
    spans = span_labels(reading.labelled.row, reading.config)
    return characters_in([(span.start, span.end) for span, name in spans if name == label])

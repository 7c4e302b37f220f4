"""What `otter score` says of a guard on labelled texts, whatever the names of their labels are."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from otterlm.errors import OtterError
from otterlm.signals.guard.config import GuardConfig
from otterlm.training.data.labelled import LabelledRow
from otterlm.training.data.labels import OFFENCE, LabelNames, Marks
from otterlm.training.evaluation.bootstrap import interval, mean_of
from otterlm.training.evaluation.detection import auc, average_precision, character_f1, f1
from otterlm.training.evaluation.guard_metrics import PERCENTS, at_percent
from otterlm.training.evaluation.guard_reading import GuardReading, offence, reaches
from otterlm.training.evaluation.passages import characters_in
from otterlm.training.evaluation.scoring import wilson_interval


def check_names(rows: Sequence[LabelledRow], config: GuardConfig, names: LabelNames) -> None:
    """Checks that labels are known: those of the guard, words for an offence, or words for none. In `categories`, and
    where the harmless labels were listed, every other name is an offence of a kind that the guard does not tell apart.

    Raises:
        OtterError: a label is not known; the row is named.
    """
    if names.harmless is not None:
        return
    for row in rows:
        for marks in (row.marks, row.prompt_marks):
            if marks is None or not marks.single:
                continue
            for name in marks.offences:
                if name not in config.offences and name.lower() not in OFFENCE:
                    raise OtterError(
                        f"{row.where}: the label {name!r} is none of the guard's ({', '.join(config.offences)}): say "
                        "which labels are harmless with --harmless, the others are offences"
                    )


@dataclass(frozen=True, slots=True)
class _Judged:
    """Holds texts whose truth is known.

    Attributes:
        scores: `[n]`, the probability of an offence at the end.
        flagged: `[n]` bool, whether it reaches a stored threshold.
        truth: `[n]` bool.
    """

    scores: Tensor
    flagged: Tensor
    truth: Tensor

    def of(self, rows: Tensor) -> "_Judged":
        """Returns some of them."""
        return _Judged(self.scores[rows], self.flagged[rows], self.truth[rows])


def summarize_guard(readings: Sequence[GuardReading]) -> dict[str, Any]:
    """Returns the measures of labelled texts, one object.

    Where texts have labels: `auc`, `average_precision` and `f1` of the probability of any offence at the end of the
    text, each with a 95% interval `..._ci95`; `precision` and `recall` beside `f1`, at the stored thresholds; `auc_P`
    after P percent of the tokens; `alarm`, the shares of offensive and of harmless texts in which it rings;
    `by_category` where there are several offences; `texts`, how many those are, and `offensive`, how many of them are.

    Where passages are marked: `span_f1`, the mean F1 of characters (a text without any, where none are marked, counts
    as 1), and `delay`, tokens from the first marked one to the alarm, a mean over the texts in which it rings.

    Where prompts have labels, too: `prompts`, the same for them. And `n`, all texts.

    Raises:
        OtterError: nothing can be measured.
    """
    config = readings[0].config
    texts = [each for each in readings if each.labelled.row.marks is not None]
    summary: dict[str, Any] = {}
    if texts:
        summary |= _summarize([_mark(each) for each in texts], [each.probabilities for each in texts], config)
        known = [(each, truth) for each in texts if (truth := is_offence(_mark(each), config)) is not None]
        summary["alarm"] = _alarm(known)
    spans = [each for each in readings if each.labelled.row.spans is not None]
    if spans and config.spans:
        summary |= _summarize_spans(spans)
    elif spans and not texts:
        raise OtterError("the rows only mark passages, and this guard was trained without: train it on rows with spans")
    prompts = [each for each in readings if each.labelled.row.prompt_marks is not None and each.prompt is not None]
    if prompts:
        marks = [each.labelled.row.prompt_marks for each in prompts]
        probabilities = [each.prompt[None] for each in prompts if each.prompt is not None]
        summary["prompts"] = _summarize([each for each in marks if each is not None], probabilities, config)
    if not summary:
        raise OtterError("the data has no labels that can be measured")
    return summary | {"n": len(readings)}


def _mark(reading: GuardReading) -> Marks:
    marks = reading.labelled.row.marks
    assert marks is not None
    return marks


def is_offence(marks: Marks, config: GuardConfig) -> bool | None:
    """Says whether a text has any offence; None: of some of the guard's labels that is not known."""
    if marks.offences:
        return True
    return None if marks.judged is not None and not set(config.offences) <= set(marks.judged) else False


def _summarize(marks: Sequence[Marks], probabilities: Sequence[Tensor], config: GuardConfig) -> dict[str, Any]:
    """Measures texts, whose probabilities are `[n, L]` each."""
    truths = [is_offence(each, config) for each in marks]
    known = [index for index, truth in enumerate(truths) if truth is not None]
    if not known:
        return {"texts": 0}
    truth = torch.tensor([bool(truths[index]) for index in known])
    curves = [offence(probabilities[index], config) for index in known]
    final = torch.stack([probabilities[index][-1] for index in known])  # [n, L]
    judged = _Judged(offence(final, config), reaches(final, config), truth)
    summary = _measure(judged) | {"texts": len(known), "offensive": int(truth.sum())}
    if any(len(curve) > 1 for curve in curves):
        parts = {percent: torch.stack([at_percent(curve, percent) for curve in curves]) for percent in PERCENTS}
        summary |= {f"auc_{percent}": auc(scores, truth) for percent, scores in parts.items()}
    categories = _by_category(marks, final, known, judged, config)
    return summary | ({"by_category": categories} if len(categories) > 1 else {})


def _measure(judged: _Judged) -> dict[str, Any]:
    measures: dict[str, Callable[[_Judged], float]] = {
        "auc": lambda some: auc(some.scores, some.truth),
        "average_precision": lambda some: average_precision(some.scores, some.truth),
        "f1": lambda some: f1(some.flagged, some.truth) if bool(some.truth.any()) else math.nan,
    }
    summary: dict[str, Any] = {}
    for name, measure in measures.items():
        summary[name] = measure(judged)
        summary[f"{name}_ci95"] = interval(len(judged.truth), partial(_resampled, measure, judged))
    hits = int((judged.flagged & judged.truth).sum())
    summary["precision"] = hits / max(1, int(judged.flagged.sum()))
    summary["recall"] = hits / max(1, int(judged.truth.sum()))
    return summary


def _resampled(measure: Callable[[_Judged], float], judged: _Judged, rows: Tensor) -> float:
    return measure(judged.of(rows))


def _by_category(
    marks: Sequence[Marks], final: Tensor, known: Sequence[int], judged: _Judged, config: GuardConfig
) -> dict[str, dict[str, Any]]:
    """Measures each offence of the data against the harmless texts: by its probability where the guard has
    this label, else by that of any offence."""
    summary = {}
    seen = dict.fromkeys(name for index in known for name in marks[index].offences)
    # A name that says no more than that there is an offence is no category.
    names = [name for name in seen if name in config.offences or name.lower() not in OFFENCE]
    for name in names:
        has = torch.tensor([name in marks[index].offences for index in known])
        rows = (has | ~judged.truth).nonzero().flatten()
        known_label = name in config.offences
        scores = final[rows, config.labels.index(name)] if known_label else judged.scores[rows]
        flagged = scores >= config.thresholds[name] if known_label else judged.flagged[rows]
        summary[name] = _measure(_Judged(scores, flagged, has[rows])) | {"n": int(has.sum())}
    return summary


def _alarm(known: Sequence[tuple[GuardReading, bool]]) -> dict[str, Any]:
    """Counts how often the alarm rings while a text is read."""
    rings = {side: [each.rings is not None for each, truth in known if truth == side] for side in (True, False)}
    names = {True: "detected", False: "false_alarms"}
    summary: dict[str, Any] = {}
    for side, values in rings.items():
        share = sum(values) / len(values) if values else math.nan
        summary[names[side]] = share
        summary[f"{names[side]}_ci95"] = list(wilson_interval(share, len(values))) if values else [math.nan, math.nan]
    return summary


def _summarize_spans(readings: Sequence[GuardReading]) -> dict[str, Any]:
    """Measures texts with marked passages, whatever offences they are."""
    values = torch.tensor([passage_f1(each) for each in readings])
    summary: dict[str, Any] = {"span_f1": float(values.mean())}
    summary["span_f1_ci95"] = interval(len(values), mean_of(values))
    marked = [(each, first) for each in readings if (first := each.first_inside()) is not None]
    rings = [(each.rings, first) for each, first in marked]
    delays = [ring - first for ring, first in rings if ring is not None]
    summary["delay"] = sum(delays) / len(delays) if delays else math.nan
    summary["delay_detected"] = len(delays) / len(marked) if marked else math.nan
    summary["delay_early"] = sum(delay < 0 for delay in delays) / len(marked) if marked else math.nan
    return summary | {"with_spans": len(marked)}


def passage_f1(reading: GuardReading) -> float:
    """Returns the F1 of a text's characters: those that the guard marks, against those in its marked passages."""
    marked = {index for name in reading.config.spans for index in reading.marked(name)}
    truth = characters_in([(span.start, span.end) for span in reading.labelled.row.spans or ()])
    return character_f1(marked, truth)

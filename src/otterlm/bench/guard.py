"""Measures a guard beside its rivals, on the same base, data and run: who detects an offence, and how early.

False alarms are the share of harmless texts that a detector flags at its threshold, misses the share of offensive ones
that it does not.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from otterlm.bench import figures
from otterlm.bench.guard_rivals import Detector, Verdicts
from otterlm.errors import OtterError
from otterlm.model import OtterModel
from otterlm.signals.base import Capability
from otterlm.signals.guard.config import GuardConfig
from otterlm.training.data.labelled_tokens import LabelledExample
from otterlm.training.evaluation.bootstrap import Statistic, interval
from otterlm.training.evaluation.detection import auc, average_precision, f1
from otterlm.training.evaluation.guard_metrics import PERCENTS, at_percent
from otterlm.training.evaluation.guard_reading import reaches, read_guard


@dataclass(frozen=True, slots=True)
class GuardRow:
    """A row is one detector; `..._ci95` are the two ends of a 95% interval.

    Attributes:
        data: the name of the texts.
        method: the detector's name.
        kind, seed: see `Detector`.
        texts: how many there are.
        auc, average_precision, f1: of whole texts.
        aucs: after 25, 50, 75 and 100% of the tokens.
        false_alarms, misses: at the threshold.
        extra_parameters: beside the base.
        leads: AUC of the first detector minus that of this one, on the same texts, after the same parts; of the first
            one itself there are none.
        leads_ci95: of each of these.
    """

    data: str
    method: str
    kind: str
    seed: int
    texts: int
    auc: float
    auc_ci95: list[float]
    average_precision: float
    average_precision_ci95: list[float]
    f1: float
    f1_ci95: list[float]
    aucs: list[float]
    false_alarms: float
    misses: float
    extra_parameters: int
    leads: list[float]
    leads_ci95: list[list[float]]

    def to_dict(self) -> dict[str, Any]:
        """Returns the row for JSON."""
        return asdict(self)


def truth_of(examples: Sequence[LabelledExample]) -> Tensor:
    """Returns whether each text is offensive, `[n]` bool.

    Raises:
        OtterError: of a text it is not known, or all are of one kind.
    """
    truths = []
    for each in examples:
        marks, spans = each.row.marks, each.row.spans
        if marks is None and spans is None:
            raise OtterError(f"{each.row.where}: the bench needs a label of every text")
        truths.append(bool(marks.offences) if marks is not None else bool(spans))
    if len(set(truths)) < 2:
        raise OtterError("the bench needs offensive texts and harmless ones")
    return torch.tensor(truths)


def otter_detector(model: OtterModel) -> Detector:
    """Makes the detector that is a guard: the probability of any offence; a text is flagged where a label reaches its
    threshold.

    Raises:
        OtterError: the adapter is no guard.
    """
    name = model.adapter_name(None, Capability.CLASSES)
    config = model.adapter(name).config.signal
    assert isinstance(config, GuardConfig)

    def judge(examples: Sequence[LabelledExample]) -> Verdicts:
        readings = read_guard(model, examples)
        scores = [torch.stack([at_percent(each.offence, percent) for percent in PERCENTS]) for each in readings]
        return torch.stack(scores), torch.stack([reaches(each.probabilities[-1], config) for each in readings])

    extra = model.adapter(name).extra_parameters(model.config.get_text_config(decoder=True).vocab_size)
    return Detector("Otter", judge, extra)


def measure(
    detectors: Sequence[Detector], examples: Sequence[LabelledExample], data: str = ""
) -> tuple[list[GuardRow], dict[str, Any]]:
    """Measures detectors on the same texts, which have a name. The first one is compared with each of the others.

    Returns:
        A row each; and by detector the curve of false alarms against misses, over all thresholds.
    """
    truth = truth_of(examples)
    verdicts = [detector.judge(examples) for detector in detectors]  # [n, 4], [n] each
    first = verdicts[0][0]
    rows, curves = [], {}
    for detector, (scores, flagged) in zip(detectors, verdicts, strict=True):
        final = scores[:, -1]
        measures = {
            "auc": partial(_of_rows, auc, final, truth),
            "average_precision": partial(_of_rows, average_precision, final, truth),
            "f1": partial(_of_rows, f1, flagged, truth),
        }
        everything = torch.arange(len(truth))
        parts = () if scores is first else range(len(PERCENTS))
        leads = [_lead(first[:, part], scores[:, part], truth) for part in parts]
        values: dict[str, Any] = {name: of(everything) for name, of in measures.items()}
        values |= {f"{name}_ci95": interval(len(truth), of) for name, of in measures.items()}
        rows.append(
            GuardRow(
                data=data,
                method=detector.name,
                kind=detector.kind or detector.name,
                seed=detector.seed,
                texts=len(truth),
                aucs=[auc(scores[:, part], truth) for part in range(len(PERCENTS))],
                false_alarms=float(flagged[~truth].float().mean()),
                misses=float((~flagged)[truth].float().mean()),
                extra_parameters=detector.extra_parameters,
                leads=[lead(everything) for lead in leads],
                leads_ci95=[interval(len(truth), lead) for lead in leads],
                **values,
            )
        )
        curves[detector.name] = trade_off(final, truth)
    return rows, curves


def over_seeds(rows: Sequence[GuardRow]) -> list[dict[str, Any]]:
    """Returns of each kind with several seeds: how many, the means of `aucs` and of `f1`, and their least and highest
    values, `..._range`."""
    kinds: dict[str, list[GuardRow]] = {}
    for row in rows:
        kinds.setdefault(row.kind, []).append(row)
    summary = []
    for kind, some in kinds.items():
        if len(some) > 1:
            aucs, f1s = torch.tensor([row.aucs for row in some]), torch.tensor([row.f1 for row in some])
            summary.append(
                {
                    "kind": kind,
                    "seeds": len(some),
                    "aucs": aucs.mean(dim=0).tolist(),
                    "aucs_range": torch.stack([aucs.amin(dim=0), aucs.amax(dim=0)], dim=1).tolist(),
                    "f1": float(f1s.mean()),
                    "f1_range": [float(f1s.min()), float(f1s.max())],
                }
            )
    return summary


def _of_rows(measure: Any, values: Tensor, truth: Tensor, rows: Tensor) -> float:
    return float(measure(values[rows], truth[rows]))


def _lead(first: Tensor, other: Tensor, truth: Tensor) -> Statistic:
    """Makes the difference of two AUCs on the same texts, `[n]` each."""
    return lambda rows: auc(first[rows], truth[rows]) - auc(other[rows], truth[rows])


def trade_off(scores: Tensor, truth: Tensor, points: int = 100) -> list[tuple[float, float]]:
    """Returns (false alarms, misses) at thresholds between the scores, at most so many."""
    levels = scores.unique()
    levels = levels[torch.linspace(0, len(levels) - 1, min(points, len(levels))).long()]
    return [
        (float((scores[~truth] >= level).float().mean()), float((scores[truth] < level).float().mean()))
        for level in levels
    ]


def _sides(curve: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [false_alarms for false_alarms, _ in curve], [misses for _, misses in curve]


def draw(path: Path, rows: Sequence[GuardRow], curves: dict[str, list[tuple[float, float]]]) -> None:
    """Draws detection against tokens seen, and false alarms against misses.

    Raises:
        OtterError: matplotlib is not installed, or nothing can be written.
    """
    figure = figures.new_figure(11, 4.5)
    seen, alarms = figures.new_axes(figure, 2)
    figures.lines(seen, {row.method: (PERCENTS, row.aucs) for row in rows})
    figures.lines(alarms, {row.method: _sides(curves[row.method]) for row in rows})
    seen.set(xlabel="tokens seen, %", ylabel="AUC", xticks=PERCENTS)
    figures.set_title(seen, figures.finding([row.to_dict() for row in rows], "auc", "higher"))
    figures.set_title(alarms, "Misses against false alarms")
    alarms.set(xlabel="false alarms", ylabel="misses")
    figures.write_figure(path, figure)

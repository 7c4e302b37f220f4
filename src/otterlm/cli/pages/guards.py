"""Makes the page of labelled texts that a guard has read."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from otterlm.cli.pages.texts import cut, turns
from otterlm.colour import coloured_html
from otterlm.report.charts import Axes, curve, histogram
from otterlm.report.page import Figure, Part, Row, Scale, Text, page
from otterlm.training.data.labels import Marks
from otterlm.training.evaluation.detection import roc
from otterlm.training.evaluation.guard_reading import GuardReading
from otterlm.training.evaluation.guard_summary import is_offence


def guard_page(
    title: str,
    readings: Sequence[GuardReading],
    summary: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    limit: int,
) -> str:
    """Returns the page as HTML.

    Args:
        title: of the page.
        readings: the texts, with what the guard says of them.
        summary: of the readings, see `summarize_guard`.
        tokenizer: the base's.
        limit: tokens of a response.
    """
    config = readings[0].config
    marks = [each.labelled.row.marks for each in readings]
    truths = [None if mark is None else is_offence(mark, config) for mark in marks]
    scores = [float(each.offence[-1]) for each in readings]
    rows = [
        _row(each, truth, score, tokenizer, limit) for each, truth, score in zip(readings, truths, scores, strict=True)
    ]
    known = [(score, truth) for score, truth in zip(scores, truths, strict=True) if truth is not None]
    part = Part("Labelled texts", _facts(summary), _figures(known), rows)
    span = Scale(0.0, 1.0, "Probability that the text so far is harmless.", ("offence", "harmless"))
    return page(title, span, (part,))


def _facts(summary: dict[str, Any]) -> list[tuple[str, str, str]]:
    facts = []
    for name, label in (
        ("auc", "AUC"),
        ("average_precision", "Average precision"),
        ("f1", "F1"),
        ("span_f1", "F1 of passages"),
    ):
        if name in summary:
            low, high = summary[f"{name}_ci95"]
            facts.append((label, f"{summary[name]:.3f}", f"95% interval {low:.3f} to {high:.3f}"))
    if "alarm" in summary:
        alarm = summary["alarm"]
        facts.append(
            ("Alarm", f"{alarm['detected']:.1%}", f"of the offences, {alarm['false_alarms']:.1%} of the others")
        )
    return [*facts, ("Texts", f"{summary['n']:,}", f"{summary.get('offensive', 0):,} of them offensive")]


def _figures(known: Sequence[tuple[float, bool]]) -> list[Figure]:
    """Draws the ROC curve and the histogram of texts whose truth is known."""
    if len({truth for _, truth in known}) < 2:
        return []
    scores, truth = torch.tensor([score for score, _ in known]), torch.tensor([truth for _, truth in known])
    axes = Axes((0.0, 1.0), (0.0, 1.0), ("false alarms", "offences detected"), (True, True))
    groups = {
        "harmless": [score for score, offensive in known if not offensive],
        "offence": [score for score, offensive in known if offensive],
    }
    return [
        Figure(
            curve(axes, roc(scores, truth), "ROC curve", reference=[(0.0, 0.0), (1.0, 1.0)]),
            "ROC curve of whole texts (dashed: chance)",
        ),
        Figure(
            histogram(groups, (0.0, 1.0), "probability of an offence", "Probabilities of harmless and offensive texts"),
            "Probability of an offence, of whole texts",
            tuple(groups),
        ),
    ]


def _row(each: GuardReading, truth: bool | None, score: float, tokenizer: PreTrainedTokenizerBase, limit: int) -> Row:
    example, config = each.labelled.example, each.config
    mark = each.labelled.row.marks
    error = -1.0 if truth is None else abs(float(truth) - score)
    verdict = ", ".join(f"{name} {float(each.of(name)[-1]):.2f}" for name in config.offences)
    if each.rings is not None:
        verdict += f"; the alarm rings at token {each.rings + 1}"
    response = example.branches[0]
    harmless = (1 - each.offence).tolist()
    text = Text(
        _name(mark, truth),
        f"harmless {1 - score:.2f}",
        coloured_html(tokenizer, response, harmless, 0.0, 1.0),
        cut(response, limit),
        None if truth is None else not truth,
    )
    wrong = None if truth is None else error > 0.5
    before = turns(each.labelled.row.text, example.prefix, tokenizer) if each.labelled.row.text.response else []
    return Row(f"Row {example.row + 1}", verdict, wrong, error, before, (text,))


def _name(mark: Marks | None, truth: bool | None) -> str:
    """Returns the labels that the data give a text."""
    if mark is not None and mark.offences:
        return f"Labelled {', '.join(mark.offences)}"
    if mark is not None and mark.harmless is not None:
        return f"Labelled {mark.harmless}"
    return "No label" if truth is None else "Labelled harmless"

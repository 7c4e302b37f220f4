"""Reads labelled texts with a guard, for `otter score` and `otter calibrate`."""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from otterlm.bases import check_context, load_config, load_tokenizer
from otterlm.cli.groups import HeldOut, Machine
from otterlm.config import OtterConfig
from otterlm.errors import OtterError
from otterlm.model import OtterModel
from otterlm.signals.guard.config import GuardConfig, LabelCalibration
from otterlm.training.data.labelled import read_labelled_rows
from otterlm.training.data.labelled_tokens import tokenize_labelled
from otterlm.training.data.labels import LabelNames
from otterlm.training.data.tokens import Limits
from otterlm.training.evaluation.guard_calibration import calibrate_guard
from otterlm.training.evaluation.guard_reading import GuardReading, read_guard
from otterlm.training.evaluation.guard_summary import check_names, summarize_guard


def is_guard(config: OtterConfig, names: LabelNames) -> bool:
    """Says whether an adapter is a guard.

    Raises:
        OtterError: it is none, and label names were given.
    """
    guard = isinstance(config.signal, GuardConfig)
    if not guard and names != LabelNames():
        raise OtterError(
            "--label-names, --harmless, --text-column and --label-column are for a guard, and this adapter is a "
            f"{config.signal.type}: leave them out"
        )
    return guard


@dataclass(frozen=True, slots=True)
class LabelledData:
    """Says which labelled texts are read, and how.

    Attributes:
        data: see `otterlm.training.data.labelled.read_labelled_rows`.
        names: what their labels mean.
        held_out: which rows.
        limit: only the first of these.
        limits: tokens of a prompt and of a response.
        batch_size: texts a pass.
    """

    data: str
    names: LabelNames
    held_out: HeldOut
    limits: Limits
    batch_size: int
    limit: int | None = None


def read_data(
    what: LabelledData, base: str, adapter: Path, adapter_name: str | None, config: OtterConfig, machine: Machine
) -> tuple[list[GuardReading], PreTrainedTokenizerBase]:
    """Reads labelled texts with a guard; returns the tokenizer, too. A row is named by its place in the data.

    Raises:
        OtterError: base or adapter cannot be loaded, the data cannot be read, or a text exceeds the base's context.
    """
    signal = config.signal
    assert isinstance(signal, GuardConfig)
    names = replace(what.names, known=signal.harmless_names)
    everything = read_labelled_rows(what.data, names)
    numbers = what.held_out.choose(everything)[: what.limit]
    rows = [everything[index] for index in numbers]
    check_names(rows, signal, names)
    tokenizer = load_tokenizer(base)
    examples = tokenize_labelled(rows, tokenizer, what.limits)
    examples = [
        replace(each, example=replace(each.example, row=number)) for each, number in zip(examples, numbers, strict=True)
    ]
    check_context(load_config(base), max(each.example.longest for each in examples))
    model = OtterModel.from_pretrained(machine.load(base), adapter, adapter_name)
    return read_guard(model, examples, what.batch_size), tokenizer


def calibrate(
    readings: Sequence[GuardReading], false_alarm_rate: float
) -> tuple[tuple[LabelCalibration, ...], dict[str, Any]]:
    """Calibrates a guard on a random half of some texts, and measures it on the other; returns both.

    Raises:
        OtterError: a half lacks texts with a label, or without it.
    """
    order = list(readings)
    random.Random(0).shuffle(order)
    fitted, measured = order[::2], order[1::2]
    calibrations = calibrate_guard(fitted, false_alarm_rate)
    config = replace(readings[0].config, calibrations=calibrations)
    return calibrations, summarize_guard([replace(each, config=config) for each in measured])


def line(reading: GuardReading, tokenizer: PreTrainedTokenizerBase, tokens: bool) -> str:
    """Makes a row of --out: the probability of each label at the end, the marked passages, and perhaps every token."""
    config = reading.config
    row: dict[str, Any] = {
        "row": reading.labelled.example.row,
        "labels": dict(zip(config.labels, reading.probabilities[-1].tolist(), strict=True)),
        "rings": reading.rings,
    }
    if reading.labelled.characters is not None:
        row["spans"] = [[start, end, label] for label in config.spans for start, end in reading.passages(label)]
    if tokens:
        (response,) = reading.labelled.example.branches
        by_label = dict(zip(config.labels, reading.probabilities.T.tolist(), strict=True))
        row["tokens"] = {"text": [tokenizer.decode([token]) for token in response], "labels": by_label}
    return json.dumps(row, ensure_ascii=False) + "\n"


def in_words(summary: dict[str, Any]) -> list[str]:
    """Returns the lines that a person reads."""
    lines = []
    if "auc" in summary:
        measures = "  ".join(
            f"{name.replace('_', ' ')} {summary[name]:.3f} ({low:.3f} to {high:.3f})"
            for name in ("auc", "average_precision", "f1")
            for low, high in (summary[f"{name}_ci95"],)
        )
        lines.append(f"{measures}  on {summary['texts']} texts, {summary['offensive']} of them offensive")
    if "alarm" in summary:
        alarm = summary["alarm"]
        lines.append(
            f"the alarm rings in {alarm['detected']:.1%} of the offensive and in {alarm['false_alarms']:.1%} of the "
            "harmless texts"
        )
    for name, values in summary.get("by_category", {}).items():
        lines.append(f"  {name}: auc {values['auc']:.3f}, recall {values['recall']:.1%}, {values['n']} texts")
    if "span_f1" in summary:
        low, high = summary["span_f1_ci95"]
        lines.append(
            f"passages: F1 of characters {summary['span_f1']:.3f} ({low:.3f} to {high:.3f}); the alarm rings "
            f"{summary['delay']:+.1f} tokens from the first, in {summary['delay_detected']:.1%} of "
            f"{summary['with_spans']} texts"
        )
    if "auc" in summary.get("prompts", {}):
        lines.append(f"prompts: auc {summary['prompts']['auc']:.3f}, f1 {summary['prompts']['f1']:.3f}")
    return lines

"""Defines `otter calibrate`, which measures what an adapter's rewards or labels mean, and sets an alarm."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from otterlm import adapter_files, files
from otterlm.bench import figures
from otterlm.cli import labelled
from otterlm.cli.groups import HeldOut, Machine, grouped
from otterlm.cli.labelled import is_guard
from otterlm.cli.options import AsJson, Base, OneAdapter, one_adapter
from otterlm.cli.scored import score_rows
from otterlm.cli.terminal import print_json
from otterlm.config import OtterConfig
from otterlm.errors import OtterError
from otterlm.signals.guard.config import LabelCalibration
from otterlm.signals.reward.config import Calibration
from otterlm.training.data.labels import LabelNames
from otterlm.training.data.rows import read_rows
from otterlm.training.data.tokens import Limits
from otterlm.training.evaluation.calibration import Alarm, calibrate


@grouped
def command(
    base: Base,
    adapter: OneAdapter,
    data: Annotated[
        str, typer.Option(help="Pairs, scored or (of a guard) labelled texts that the adapter was not trained on.")
    ],
    bad_below: Annotated[float | None, typer.Option(help="Which scores are bad; for scored texts.")] = None,
    false_alarm_rate: Annotated[float, typer.Option(help="Share of good responses that may set the alarm off.")] = 0.05,
    plot: Annotated[Path | None, typer.Option(help="Draw the curve here, as PNG, and beside it as SVG.")] = None,
    save: Annotated[bool, typer.Option(help="Keep the calibration in the adapter's configuration.")] = True,
    names: LabelNames = LabelNames(),
    limits: Limits = Limits(),
    held_out: HeldOut = HeldOut(),
    batch_size: Annotated[int, typer.Option(help="Texts a pass.", min=1)] = 8,
    machine: Machine = Machine(),
    as_json: AsJson = False,
) -> None:
    """Measures what rewards or labels mean, and sets an alarm.

    Half of the data gives a curve from rewards to scores and the alarm's threshold, the other half measures them. Of a
    guard: curves, thresholds and alarms of its labels.

    Example:
        otter calibrate --base BASE --adapter DIR --data HELD_OUT \\
            --false-alarm-rate 0.02
    """
    if bad_below is not None and not math.isfinite(bad_below):
        raise OtterError(f"--bad-below must be a number, got {bad_below}")
    figure = None if plot is None else figures.new_figure(5, 4)
    name, where = one_adapter(adapter)
    folder = adapter_files.locate(where)
    config = adapter_files.read_config(folder)
    measured: dict[str, Any]
    if is_guard(config, names):
        if bad_below is not None:
            raise OtterError("--bad-below is of scores; a guard reads labels: leave it out")
        what = labelled.LabelledData(data, names, held_out, limits, batch_size)
        readings, _ = labelled.read_data(what, base, folder, name, config, machine)
        calibrations, summary = labelled.calibrate(readings, false_alarm_rate)
        curves = {each.label: each.curve for each in calibrations}
        changes: dict[str, Any] = {"calibrations": calibrations}
        measured = {"calibrations": [asdict(each) for each in calibrations], "measured": summary}
        lines = [_label_in_words(each) for each in calibrations] + labelled.in_words(summary)
        levels = {each.label: each.alarm for each in calibrations}
    else:
        rows = read_rows(data)
        held = [rows[index] for index in held_out.choose(rows)]
        scored, _ = score_rows(held, base, folder, name, limits, batch_size, machine)
        calibration, alarm = calibrate(scored, bad_below, false_alarm_rate)
        curves, levels = {"": calibration.curve}, {"": calibration.threshold}
        changes, lines = {"calibration": calibration}, _in_words(calibration, alarm)
        measured = {"curve": calibration.curve, **asdict(alarm)}
    if save:
        _save(folder, config, changes)
    if plot is not None:
        _draw(figure, curves, levels, plot)
    if as_json:
        print_json(measured)
    else:
        print("\n".join(lines))


def _save(folder: Path, config: OtterConfig, changes: dict[str, Any]) -> None:
    """Keeps what was measured in the adapter's configuration."""
    if adapter_files.read_config(folder) != config:
        raise OtterError(f"{folder} was changed meanwhile: calibrate the adapter that is there now")
    signal: Any = config.signal
    config = replace(config, signal=replace(signal, **changes))
    files.write_text(folder / adapter_files.CONFIG, config.to_json())


def _in_words(calibration: Calibration, alarm: Alarm) -> list[str]:
    return [
        "reward -> score: " + ", ".join(f"{x:+.2f} -> {y:.2f}" for x, y in calibration.curve),
        f"An alarm under {alarm.threshold:+.3f} rings in {alarm.false_alarms:.1%} of the good responses and in "
        f"{alarm.detected:.1%} of the bad ones, {alarm.early:.1f} tokens ({alarm.early_share:.0%}) before their end",
    ]


def _label_in_words(calibration: LabelCalibration) -> str:
    span = "" if calibration.span is None else f", a word in a passage from the value {calibration.span:.2f} on"
    span += f" and {calibration.span_share:.0%} of its text's highest word" if calibration.span_share else ""
    span += f", of which {calibration.span_listed:.0%} are its share in the list" if calibration.span_listed else ""
    return (
        f"{calibration.label}: a whole text counts from {calibration.threshold:.3f} on, the alarm's hits from "
        f"{calibration.alarm:.3f} on{span}"
    )


LINES = ("-", "--", "-.", ":")


def _draw(
    figure: Any, curves: Mapping[str, Sequence[tuple[float, float]]], alarms: Mapping[str, float], path: Path
) -> None:
    (axes,) = figures.new_axes(figure)
    for number, (label, curve) in enumerate(curves.items()):
        line = LINES[number % len(LINES)]
        axes.plot(*zip(*curve, strict=True), line, marker="o", color=figures.OTTER, label=label or "expected")
        axes.axvline(alarms[label], linestyle=line, color=figures.RIVAL, label=f"{label} alarm".strip())
    guard = any(curves)
    axes.set(xlabel="probability" if guard else "reward", ylabel="share of texts" if guard else "score")
    axes.legend()
    figures.write_figure(path, figure)

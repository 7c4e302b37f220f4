"""Defines `otter calibrate`, which measures what an adapter's rewards mean, and sets an alarm."""

import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from otterlm import adapter_files, files
from otterlm.bench import report
from otterlm.cli.groups import HeldOut, Machine, grouped
from otterlm.cli.options import AsJson, Base, OneAdapter, one_adapter
from otterlm.cli.scored import score_rows
from otterlm.cli.terminal import print_json
from otterlm.errors import OtterError
from otterlm.signals.reward.config import Calibration
from otterlm.training.data.rows import read_rows
from otterlm.training.data.tokens import Limits
from otterlm.training.evaluation.calibration import calibrate


@grouped
def command(
    base: Base,
    adapter: OneAdapter,
    data: Annotated[str, typer.Option(help="Pairs or scored texts that the adapter was not trained on.")],
    bad_below: Annotated[float | None, typer.Option(help="Which scores are bad; for scored texts.")] = None,
    false_alarm_rate: Annotated[float, typer.Option(help="Share of good responses that may set the alarm off.")] = 0.05,
    plot: Annotated[Path | None, typer.Option(help="Draw the curve here, as PNG.")] = None,
    save: Annotated[bool, typer.Option(help="Keep the calibration in the adapter's configuration.")] = True,
    limits: Limits = Limits(),
    held_out: HeldOut = HeldOut(),
    batch_size: Annotated[int, typer.Option(min=1)] = 8,
    machine: Machine = Machine(),
    as_json: AsJson = False,
) -> None:
    """Fits a curve from rewards to scores and an alarm's threshold on half of the data, and measures on the other."""
    if bad_below is not None and not math.isfinite(bad_below):
        raise OtterError(f"--bad-below must be a number, got {bad_below}")
    figure = None if plot is None else report.new_figure(5, 4)
    name, where = one_adapter(adapter)
    folder = adapter_files.locate(where)
    config = adapter_files.read_config(folder)
    rows = read_rows(data)
    held = [rows[index] for index in held_out.choose(rows)]
    scored, _ = score_rows(held, base, folder, name, limits, batch_size, machine)
    calibration, alarm = calibrate(scored, bad_below, false_alarm_rate)
    if save:
        if adapter_files.read_config(folder) != config:
            raise OtterError(f"{folder} was changed meanwhile: calibrate the adapter that is there now")
        signal: Any = config.signal
        config = replace(config, signal=replace(signal, calibration=calibration))
        files.write_text(folder / adapter_files.CONFIG, config.to_json())
    if plot is not None:
        _draw(figure, calibration, plot)
    if as_json:
        print_json({"curve": calibration.curve, **asdict(alarm)})
        return
    print("reward -> score: " + ", ".join(f"{x:+.2f} -> {y:.2f}" for x, y in calibration.curve))
    print(
        f"An alarm under {alarm.threshold:+.3f} rings in {alarm.false_alarms:.1%} of the good responses and in "
        f"{alarm.detected:.1%} of the bad ones, {alarm.early:.1f} tokens ({alarm.early_share:.0%}) before their end"
    )


def _draw(figure: Any, calibration: Calibration, path: Path) -> None:
    axes = figure.subplots()
    axes.plot(*zip(*calibration.curve, strict=True), marker="o")
    axes.axvline(calibration.threshold, linestyle="--", color="tab:red", label="alarm")
    axes.set(xlabel="reward", ylabel="score")
    axes.legend()
    report.write_figure(path, figure)

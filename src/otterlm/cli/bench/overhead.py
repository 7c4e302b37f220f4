"""Defines `otter bench overhead`, which measures what steering costs, with random weights."""

from itertools import product
from pathlib import Path
from typing import Annotated

import typer

from otterlm.bases import parse_dtype
from otterlm.bench import report
from otterlm.bench.overhead import Setting, measure
from otterlm.bench.shapes import SHAPES, check_shape
from otterlm.cli.options import AsJson, Dtype, parse_device
from otterlm.cli.terminal import print_json, show_table, with_interval


def command(
    base: Annotated[list[str] | None, typer.Option(help=f"Whose shape: {', '.join(SHAPES)}; may be repeated.")] = None,
    batch: Annotated[list[int] | None, typer.Option(help="Sequences; may be repeated.", min=1)] = None,
    prompt: Annotated[list[int] | None, typer.Option(help="Tokens of a prompt; may be repeated.", min=1)] = None,
    top_k: Annotated[list[int] | None, typer.Option(help="Candidates a step; may be repeated.", min=1)] = None,
    new_tokens: Annotated[int, typer.Option(help="Tokens generated.", min=1)] = 128,
    rounds: Annotated[int, typer.Option(help="How often each method is timed.", min=1)] = 3,
    quick: Annotated[
        bool, typer.Option("--quick", help="One small setting, within three minutes on two cores.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Folder for the results as JSON and as a plot.")] = None,
    device: Annotated[str, typer.Option(help="Where to run.")] = "cpu",
    dtype: Dtype = "float32",
    as_json: AsJson = False,
) -> None:
    """Measures time and space of steering, with random weights.

    It compares with plain decoding, ARGS and DExperts.

    Example:
        otter bench overhead --quick --out results
    """
    if quick:
        settings, rounds = [Setting(prompt=16, new=12)], 2
    else:
        cells = product(base or ["smollm2-135m"], batch or [1], prompt or [64], [new_tokens], top_k or [10])
        settings = [Setting(*cell) for cell in cells]
    parse_device(device)
    kind = parse_dtype(dtype)
    for name in base or []:
        check_shape(name)  # also with --quick, which has another shape
    rows = [row for setting in settings for row in measure(setting, rounds, dtype=kind, device=device)]
    results = [row.to_dict() for row in rows]
    if out is not None:
        used = {"rounds": rounds, "dtype": dtype, "device": device}
        report.write(
            out, "overhead", results, used, "measured_slowdown", "extra_parameters", ("measured_slowdown", "lower")
        )
    if as_json:
        print_json({"rows": results, "machine": report.machine()})
        return
    columns = ("", "batch", "prompt", "k", "tokens/s", "time", "floor", "space saved", "time saved", "over cache")
    lines = [
        (
            f"{row.shape}: {row.method}",
            str(row.batch),
            str(row.prompt),
            str(row.top_k),
            f"{row.tokens_per_second:.1f}",
            with_interval(result, "measured_slowdown", ".2f"),
            "" if row.predicted_slowdown is None else f"{row.predicted_slowdown:.2f}",
            f"{row.extra_space_saved:.1%}",
            _saved(row.extra_time_saved),
            _saved(row.extra_time_saved_over_cache),
        )
        for row, result in zip(rows, results, strict=True)
    ]
    title = f"{dtype} on {device}; medians of {rounds} rounds with 95% intervals; time as a multiple of the base's"
    show_table(title, columns, lines)


def _saved(share: float) -> str:
    """Returns the share of a rival's extra time that is saved. A method that is slower saves none."""
    return f"{share:.1%}" if share > 0 else "none"

"""Defines `otter bench guard`, which sets a guard beside linear probes, a bag of words and a separate classifier."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from otterlm import adapter_files
from otterlm.bases import check_context, load_tokenizer
from otterlm.bench import guard, report
from otterlm.bench.guard_rivals import bag_of_words, linear_probes, separate_classifier
from otterlm.cli.groups import Machine, grouped
from otterlm.cli.options import AsJson, Base, OneAdapter, one_adapter
from otterlm.cli.terminal import print_json, show_table
from otterlm.errors import OtterError
from otterlm.files import write_text
from otterlm.model import OtterModel
from otterlm.training.data.labelled import read_labelled_rows
from otterlm.training.data.labelled_tokens import tokenize_labelled
from otterlm.training.data.labels import LabelNames
from otterlm.training.data.tokens import Limits

RIVALS = ("probes", "words")


@grouped
def command(
    base: Base,
    adapter: OneAdapter,
    train: Annotated[str, typer.Option(help="Labelled texts that the guard was trained on; its rivals are, too.")],
    data: Annotated[str, typer.Option(help="Labelled texts to measure on, which nothing was trained on.")],
    rival: Annotated[list[str] | None, typer.Option(help=f"{' or '.join(RIVALS)}; may be repeated; all.")] = None,
    classifier: Annotated[
        str | None, typer.Option(help="Folder of the separate classifier, see benchmarks/guard.py.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="The first so many rows of both.", min=1)] = None,
    names: LabelNames = LabelNames(),
    limits: Limits = Limits(),
    quick: Annotated[bool, typer.Option("--quick", help="Sixty rows, within three minutes on two cores.")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder for the results as JSON and as a plot.")] = None,
    machine: Machine = Machine(),
    as_json: AsJson = False,
) -> None:
    """Measures who detects offences, and after how many tokens.

    The guard's rivals have the same base and data.

    Example:
        otter bench guard --base BASE --adapter DIR \\
            --train LABELLED --data HELD_OUT --quick
    """
    for kind in rival or ():
        if kind not in RIVALS:
            raise OtterError(f"--rival must be {' or '.join(RIVALS)}, got {kind!r}")
    name, folder = one_adapter(adapter)
    signal: Any = adapter_files.read_config(adapter_files.locate(folder)).signal
    names = replace(names, known=getattr(signal, "harmless_names", ()))
    limit = 60 if quick else limit
    tokenizer = load_tokenizer(base)
    learned, measured = (
        tokenize_labelled(read_labelled_rows(file, names)[:limit], tokenizer, limits) for file in (train, data)
    )
    truth = guard.truth_of(learned)
    guard.truth_of(measured)
    model = machine.load(base)
    check_context(model.config, max(each.example.longest for each in (*learned, *measured)))
    detectors = [guard.otter_detector(OtterModel.from_pretrained(model, folder, name))]
    for kind in rival or RIVALS:
        made = linear_probes(model, learned, truth) if kind == "probes" else [bag_of_words(tokenizer, learned, truth)]
        detectors += made
    if classifier is not None:
        detectors.append(separate_classifier(classifier, model, learned, truth))
    rows, curves = guard.measure(detectors, measured)
    results = [row.to_dict() for row in rows]
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        used: dict[str, Any] = {"base": base, "adapter": folder, "train": train, "data": data, "rows": len(learned)}
        result = {
            "task": "guard",
            "settings": used,
            "machine": report.machine(),
            "rows": results,
            "curves": curves,
        }
        write_text(out / "guard.json", json.dumps(result, indent=2) + "\n")
        guard.draw(out / "guard.png", rows, curves)
    if as_json:
        print_json({"rows": results, "machine": report.machine()})
    else:
        _show(rows)


def _show(rows: list[guard.GuardRow]) -> None:
    cells = [
        (
            row.method,
            *(f"{value:.3f}" for value in row.aucs),
            f"{row.auc_ci95[0]:.3f}-{row.auc_ci95[1]:.3f}",
            f"{row.average_precision:.3f}",
            f"{row.f1:.3f}",
            f"{row.false_alarms:.1%}",
            f"{row.misses:.1%}",
            f"{row.extra_parameters:,}",
        )
        for row in rows
    ]
    columns = ("", "AUC, 25%", "50%", "75%", "100%", "95%", "AP", "F1", "false alarms", "misses", "parameters")
    show_table(f"{rows[0].texts} texts; AUC after parts of the tokens", columns, cells)

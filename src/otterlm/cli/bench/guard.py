"""Defines `otter bench guard`, which sets a guard beside probes, a bag of words and a separate classifier."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from otterlm import adapter_files
from otterlm.bases import check_context, load_tokenizer
from otterlm.bench import guard, report
from otterlm.bench.guard_probes import probes
from otterlm.bench.guard_rivals import bag_of_words, separate_classifier
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
    data: Annotated[
        list[str],
        typer.Option(help="FILE or NAME=FILE, labelled texts that nothing was trained on; may be repeated."),
    ],
    rival: Annotated[list[str] | None, typer.Option(help=f"{' or '.join(RIVALS)}; may be repeated; all.")] = None,
    classifier: Annotated[
        str | None, typer.Option(help="Folder of the separate classifier, see benchmarks/guard.py.")
    ] = None,
    seeds: Annotated[
        int, typer.Option(help="Rivals of each kind, which learn from other parts of --train.", min=1)
    ] = 1,
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
    files = _named(data)
    learned, *measured = (
        tokenize_labelled(read_labelled_rows(file, names)[:limit], tokenizer, limits)
        for file in (train, *files.values())
    )
    truth = guard.truth_of(learned)
    for texts in measured:
        guard.truth_of(texts)
    model = machine.load(base)
    check_context(model.config, max(each.example.longest for texts in (learned, *measured) for each in texts))
    detectors = [guard.otter_detector(OtterModel.from_pretrained(model, folder, name))]
    for kind in rival or RIVALS:
        if kind == "probes":
            detectors += probes(model, learned, truth, seeds)
        else:
            detectors += [bag_of_words(tokenizer, learned, truth, seed) for seed in range(seeds)]
    if classifier is not None:
        detectors.append(separate_classifier(classifier, model, learned, truth))
    reports = {name: guard.measure(detectors, texts, name) for name, texts in zip(files, measured, strict=True)}
    results = [row.to_dict() for rows, _ in reports.values() for row in rows]
    summaries = {name: guard.over_seeds(rows) for name, (rows, _) in reports.items()}
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        result = {
            "task": "guard",
            "settings": {"base": base, "adapter": folder, "train": train, "data": files, "rows": len(learned)},
            "machine": report.machine(),
            "rows": results,
            "over_seeds": summaries,
            "curves": {name: curves for name, (_, curves) in reports.items()},
        }
        write_text(out / "guard.json", json.dumps(result, indent=2) + "\n")
        for name, (rows, curves) in reports.items():
            guard.draw(out / f"guard-{name}.png", [row for row in rows if row.seed == 0], curves)
    if as_json:
        print_json({"rows": results, "over_seeds": summaries, "machine": report.machine()})
    else:
        for name, (rows, _) in reports.items():
            _show(rows)
            _show_seeds(summaries[name], name)


def _named(data: list[str]) -> dict[str, str]:
    """Returns the files by name, from NAME=FILE, or from a file, which is named after itself.

    Raises:
        OtterError: two have the same name.
    """
    files: dict[str, str] = {}
    for spec in data:
        name, _, file = spec.rpartition("=")
        name = name or Path(file).name.partition(".")[0]
        if name in files:
            raise OtterError(f"two files of --data are named {name!r}: give NAME=FILE")
        files[name] = file
    return files


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
            f"{row.leads[-1]:+.3f} ({row.leads_ci95[-1][0]:+.3f} to {row.leads_ci95[-1][1]:+.3f})" if row.leads else "",
        )
        for row in rows
    ]
    measures = ("AUC, 25%", "50%", "75%", "100%", "95%", "AP", "F1", "false alarms", "misses", "parameters")
    columns = ("", *measures, "guard's lead, 100%")
    show_table(f"{rows[0].data}: {rows[0].texts} texts; AUC after parts of the tokens", columns, cells)


def _show_seeds(summary: list[dict[str, Any]], name: str) -> None:
    cells = [
        (
            each["kind"],
            *(
                f"{mean:.3f} ({low:.3f}-{high:.3f})"
                for mean, (low, high) in zip(
                    (*each["aucs"], each["f1"]), (*each["aucs_range"], each["f1_range"]), strict=True
                )
            ),
        )
        for each in summary
    ]
    if cells:
        columns = ("", "AUC, 25%", "50%", "75%", "100%", "F1")
        show_table(f"{name}: means over {summary[0]['seeds']} seeds (least to highest)", columns, cells)

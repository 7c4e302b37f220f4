"""Defines `otter score`, which computes the reward of texts, and the accuracy on pairs."""

import itertools
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from transformers import PreTrainedTokenizerBase

from otterlm import adapter_files
from otterlm.cli import labelled
from otterlm.cli.groups import HeldOut, Machine, grouped
from otterlm.cli.labelled import LabelledData, is_guard, read_data
from otterlm.cli.options import AsJson, Base, OneAdapter, one_adapter
from otterlm.cli.pages.guards import guard_page
from otterlm.cli.pages.rewards import Reading, reward_page
from otterlm.cli.scored import score_rows
from otterlm.cli.terminal import print_json
from otterlm.colour import colour_range
from otterlm.errors import OtterError
from otterlm.files import write_text
from otterlm.training.data.labels import LabelNames
from otterlm.training.data.rows import read_rows
from otterlm.training.data.tokens import Limits
from otterlm.training.evaluation.guard_summary import summarize_guard
from otterlm.training.evaluation.scoring import Scored, summarize


@grouped
def command(
    base: Base,
    adapter: OneAdapter,
    data: Annotated[
        str, typer.Option(help="Pairs or scored texts, of a guard labelled texts: file, folder or hub dataset.")
    ],
    out: Annotated[Path | None, typer.Option(help="Write each row's rewards or labels here, as JSON lines.")] = None,
    html: Annotated[
        Path | None, typer.Option(help="Write the texts here as a page, tokens coloured by reward.")
    ] = None,
    tokens: Annotated[bool, typer.Option(help="With --out: also what stands beside every token.")] = False,
    names: LabelNames = LabelNames(),
    limits: Limits = Limits(),
    held_out: HeldOut = HeldOut(),
    limit: Annotated[int | None, typer.Option(help="Only the first rows.", min=1)] = None,
    batch_size: Annotated[int, typer.Option(help="Texts a pass.", min=1)] = 8,
    machine: Machine = Machine(),
    as_json: AsJson = False,
) -> None:
    """Scores texts, and measures how well an adapter ranks them.

    Of pairs: how often the chosen one scores higher, with its 95% interval. Of a guard's labelled texts: AUC, average
    precision and F1, or the F1 of marked passages, with intervals.

    Example:
        otter score --base BASE --adapter DIR --data PAIRS \\
            --out rewards.jsonl --html page.html
    """
    if tokens and out is None:
        raise OtterError("--tokens writes into the rows: give --out FILE too")
    _check_files(data, out, html)
    name, where = one_adapter(adapter)
    folder = adapter_files.locate(where)
    config = adapter_files.read_config(folder)
    if is_guard(config, names):
        what = LabelledData(data, names, held_out, limits, batch_size, limit)
        readings, tokenizer = read_data(what, base, folder, name, config, machine)
        if out is not None:
            write_text(out, "".join(labelled.line(each, tokenizer, tokens) for each in readings))
        measured = summarize_guard(readings)
        if html is not None:
            write_text(html, guard_page(f"{Path(data).name}, scored", readings, measured, tokenizer, limits.response))
        print_json(measured) if as_json else print("\n".join(labelled.in_words(measured)))
        return
    everything = read_rows(data)
    numbers = held_out.choose(everything)[:limit]
    rows = [everything[index] for index in numbers]
    scored, tokenizer = score_rows(rows, base, folder, name, limits, batch_size, machine)
    scored = [replace(row, example=replace(row.example, row=numbers[row.example.row])) for row in scored]
    summary = summarize(scored)
    if out is not None:
        write_text(out, "".join(json.dumps(_line(row, tokenizer, tokens), ensure_ascii=False) + "\n" for row in scored))
    if html is not None:
        by_number = dict(zip(numbers, rows, strict=True))
        values = [value for row in scored for rewards in row.rewards for value in rewards]
        span = colour_range(config.signal.typical_range, values)
        shown = Reading(scored, by_number, tokenizer, span, limits.response)
        write_text(html, reward_page(f"{Path(data).name}, scored", shown))
    if as_json:
        print_json(summary)
    else:
        _show(summary, scored, len(rows), shortly=out is not None)


def _check_files(data: str, out: Path | None, html: Path | None) -> None:
    """Checks that no file is written over another one of the command."""
    named = {"--data": Path(data), "--out": out, "--html": html}
    paths = {name: path.expanduser().resolve() for name, path in named.items() if path is not None}
    for first, second in itertools.combinations(paths, 2):
        if paths[first] == paths[second]:
            raise OtterError(f"{first} and {second} are one file, {named[second]}: choose another for {second}")
    for option in ("--out", "--html"):
        if option in paths and paths[option].is_dir():
            raise OtterError(f"{option} {named[option]} is a folder: give a file")


def _show(summary: dict[str, Any], scored: Sequence[Scored], rows: int, shortly: bool) -> None:
    """Prints what a person reads: of so many rows, and unless shortly the rewards of the first."""
    for kind in (summary["pairs"], summary["texts"]) if "pairs" in summary else (summary,):
        print(_in_words(kind))
    if len(scored) < rows:
        print(f"{rows - len(scored)} of {rows} rows left out: no tokens to tell two responses apart")
    if shortly:
        return
    pairs = any(len(row.rewards) == 2 for row in scored)
    print(f"rewards at the end, of the first rows{': chosen, then rejected' if pairs else ''}")
    for row in scored[:10]:
        print(f"row {row.example.row + 1}: " + "  ".join(f"{values[-1]:+.3f}" for values in row.rewards))


def _in_words(summary: dict[str, Any]) -> str:
    if "accuracy" in summary:
        low, high = summary["accuracy_ci95"]
        return f"accuracy {summary['accuracy']:.1%} (95% interval {low:.1%} to {high:.1%}) on {summary['n']} pairs"
    return (
        f"mean reward {summary['mean_reward']:.3f}, correlation with the scores {summary['correlation']:.3f}, "
        f"{summary['n']} texts"
    )


def _line(row: Scored, tokenizer: PreTrainedTokenizerBase, tokens: bool) -> dict[str, Any]:
    """Returns a row of --out: the reward of each text, and perhaps of each of its tokens."""
    line: dict[str, Any] = {"row": row.example.row, "rewards": [values[-1] for values in row.rewards]}
    if tokens:
        line["tokens"] = [
            {"text": [tokenizer.decode([token]) for token in response], "rewards": values}
            for response, values in zip(row.example.responses, row.rewards, strict=True)
        ]
    return line

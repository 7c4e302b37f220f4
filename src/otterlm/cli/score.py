"""`otter score`: the reward of texts, and the accuracy on pairs."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from otterlm.cli.groups import HeldOut, Machine, grouped
from otterlm.cli.options import AdapterFolder, AsJson, Base, console, print_json
from otterlm.cli.scored import score_rows
from otterlm.colour import coloured_html, page
from otterlm.errors import OtterError
from otterlm.files import write_text
from otterlm.training.packing import Limits
from otterlm.training.rows import read_rows
from otterlm.training.scoring import summarize


@grouped
def command(
    base: Base,
    adapter: AdapterFolder,
    data: Annotated[str, typer.Option(help="Pairs or scored texts: file, folder or hub dataset.")],
    out: Annotated[Path | None, typer.Option(help="Write each row's rewards here, as JSON lines.")] = None,
    html: Annotated[
        Path | None, typer.Option(help="Write the texts here as a page, tokens coloured by reward.")
    ] = None,
    tokens: Annotated[bool, typer.Option(help="With --out: also the reward after every token.")] = False,
    limits: Limits = Limits(),
    held_out: HeldOut = HeldOut(),
    limit: Annotated[int | None, typer.Option(help="Only the first rows.", min=1)] = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 8,
    machine: Machine = Machine(),
    as_json: AsJson = False,
) -> None:
    """Scores texts; for pairs, says how often the chosen one scores higher, with its 95% interval."""
    if tokens and out is None:
        raise OtterError("--tokens writes into the rows: give --out FILE too")
    rows = held_out.choose(read_rows(data)[:limit])
    scored, tokenizer = score_rows(rows, base, adapter, limits, batch_size, machine)
    summary = summarize(scored)
    if out is not None:
        lines: list[dict[str, Any]] = []
        for row in scored:
            line: dict[str, Any] = {"row": row.example.row, "rewards": [values[-1] for values in row.rewards]}
            if tokens:
                line["tokens"] = [
                    {"text": [tokenizer.decode([token]) for token in branch], "rewards": values}
                    for branch, values in zip(row.example.branches, row.rewards, strict=True)
                ]
            lines.append(line)
        write_text(out, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    if html is not None:
        everything = [value for row in scored for values in row.rewards for value in values]
        sections = [
            (
                f"Row {row.example.row + 1}: " + ", ".join(f"{values[-1]:+.3f}" for values in row.rewards),
                [
                    coloured_html(tokenizer, branch, values, min(everything), max(everything))
                    for branch, values in zip(row.example.branches, row.rewards, strict=True)
                ],
            )
            for row in scored
        ]
        write_text(html, page(f"{Path(data).name}, scored", sections))
    if as_json:
        print_json(summary)
        return
    for kind in (summary["pairs"], summary["texts"]) if "pairs" in summary else (summary,):
        console.print(_in_words(kind))
    if len(scored) < len(rows):
        console.print(f"{len(rows) - len(scored)} of {len(rows)} rows left out: no tokens to tell two responses apart")
    if out is None:
        for row in scored[:10]:
            console.print(f"row {row.example.row + 1}: " + "  ".join(f"{values[-1]:+.3f}" for values in row.rewards))


def _in_words(summary: dict[str, Any]) -> str:
    if "accuracy" in summary:
        low, high = summary["accuracy_ci95"]
        return f"accuracy {summary['accuracy']:.1%} (95% interval {low:.1%} to {high:.1%}) on {summary['n']} pairs"
    return (
        f"mean reward {summary['mean_reward']:.3f}, correlation with the scores {summary['correlation']:.3f}, "
        f"{summary['n']} texts"
    )

"""Defines `otter bench speed`: drafts beside the base, Medusa and prompt lookup."""

from pathlib import Path
from typing import Annotated

import typer

from otterlm.bases import load_tokenizer
from otterlm.bench import report
from otterlm.bench.speed import PROMPTS, measure, methods_of
from otterlm.cli.groups import Machine, grouped
from otterlm.cli.options import AsJson, Base, NamedAdapters, ResumedFolder, named_adapters
from otterlm.cli.terminal import print_json, show_table, with_interval
from otterlm.training.data.prompts import read_prompts


@grouped
def command(
    base: Base,
    adapter: NamedAdapters,
    data: Annotated[
        str | None, typer.Option(help="Prompts, as for otter train draft; six of our own by default.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="So many prompts, spread over all.", min=1)] = None,
    drafts: Annotated[
        list[int] | None,
        typer.Option(help="Size of a draft tree; may be repeated; by default the drafts that pay.", min=1),
    ] = None,
    confidence: Annotated[
        list[float] | None, typer.Option(help="Chance that a draft needs to be verified; may be repeated.")
    ] = None,
    medusa: Annotated[
        Path | None, typer.Option(help="Folder of trained Medusa heads: heads.safetensors and metrics.json.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Length of a response.", min=1)] = 64,
    quick: Annotated[bool, typer.Option("--quick", help="Two prompts, within three minutes on two cores.")] = False,
    out: ResumedFolder = None,
    machine: Machine = Machine(),
    as_json: AsJson = False,
) -> None:
    """Measures how much drafts speed up greedy decoding.

    It gives tokens a second and acceptance lengths, one sequence at a time.

    Example:
        otter bench speed --base smollm2-135m \\
            --adapter adapters/smollm2-135m-draft --quick
    """
    prompts = [(("user", prompt),) for prompt in PROMPTS] if data is None else read_prompts(data)
    sizes: list[int | None] = [*drafts] if drafts else [None]
    if quick:
        limit, max_new_tokens = 2, 24
    if limit is not None and limit < len(prompts):
        prompts = [prompts[index * len(prompts) // limit] for index in range(limit)]
    adapters = named_adapters(adapter)
    methods = methods_of(machine.load(base), adapters, medusa, sizes, confidence or [0.0])
    lines = None if out is None else out / "speed.jsonl"
    rows = [row.to_dict() for row in measure(methods, load_tokenizer(base), prompts, max_new_tokens, path=lines)]
    if out is not None:
        used = {"base": base, "data": data, "max_new_tokens": max_new_tokens}
        drawn = "speed_over_base", "acceptance_length"
        ours = [row["method"] for row in rows if row["method"].partition(",")[0] in adapters]
        report.write(out, "speed", rows, used, *drawn, ("speed_over_base", "higher"), "extra_parameters", ours=ours)
    if as_json:
        print_json({"rows": rows, "machine": report.machine()})
        return
    cells = [
        (
            row["method"],
            f"{row['extra_parameters']:,}",
            f"{row['tokens_per_second']:.1f}",
            with_interval(row, "speed_over_base", ".2f"),
            "" if row["acceptance_length"] is None else f"{row['acceptance_length']:.2f}",
            f"{row['identical']} of {row['prompts']}",
        )
        for row in rows
    ]
    columns = ("", "parameters", "tokens/s", "of the base's", "tokens a pass", "same tokens")
    show_table(f"{len(prompts)} prompts, {max_new_tokens} tokens, greedy", columns, cells)

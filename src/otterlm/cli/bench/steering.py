"""Defines `otter bench steering`: guidance and search beside the base, one sample and best-of-n, by the reward."""

import functools
from typing import Annotated, Any

import typer

from otterlm.bases import load_tokenizer
from otterlm.bench import report, steering
from otterlm.bench.args_rival import load_rival, unit_of
from otterlm.bench.judges import Perplexity
from otterlm.bench.steering_judges import load_judge
from otterlm.bench.steering_methods import Rival, methods_of
from otterlm.bench.steering_rows import rows_of, spread_of
from otterlm.checks import check_weight
from otterlm.cli.groups import Machine, grouped
from otterlm.cli.options import AsJson, Base, OneAdapter, Prompts, ResumedFolder, Seed, named_judges, one_adapter
from otterlm.cli.terminal import print_json, show_table, with_interval
from otterlm.errors import OtterError
from otterlm.model import OtterModel
from otterlm.signals.base import Capability
from otterlm.training.data.prompts import read_prompts
from otterlm.training.data.tokens import Limits


@grouped
def command(
    base: Base,
    adapter: OneAdapter,
    data: Prompts,
    limit: Annotated[int | None, typer.Option(help="The first so many prompts.", min=2)] = None,
    weight: Annotated[
        list[float] | None, typer.Option(help="Weight of guidance; may be repeated; 0.5, 1, 2 and 4 by default.")
    ] = None,
    sampled: Annotated[bool, typer.Option("--sampled", help="Guidance sampled, too.")] = False,
    fluency: Annotated[
        str | None, typer.Option(help="Another language model for the perplexity: as --base; else the base itself.")
    ] = None,
    judge: Annotated[
        list[str] | None,
        typer.Option(
            help="A judge that had no part in the adapter, or NAME=JUDGE: the folder of an adapter (a reward or a "
            "guard) or of a reward model, or a scorer as of otter distill; may be repeated."
        ),
    ] = None,
    reward_model: Annotated[
        str | None, typer.Option(help="Adds ARGS with this reward model: a sequence classifier with one label.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Length of a response.", min=1)] = 64,
    max_prompt_tokens: Annotated[int, typer.Option(help="A longer prompt keeps its end.", min=1)] = 256,
    batch: Annotated[int, typer.Option(help="Prompts a batch.", min=1)] = 8,
    seed: Seed = 0,
    quick: Annotated[bool, typer.Option("--quick", help="Two prompts, within three minutes on two cores.")] = False,
    out: ResumedFolder = None,
    machine: Machine = Machine(),
    as_json: AsJson = False,
) -> None:
    """Measures what steering adds to the adapter's own reward.

    It compares guidance, search and best-of-n, and what each costs.

    Example:
        otter bench steering --base BASE --adapter DIR --data PROMPTS \\
            --limit 40 --out results
    """
    name, folder = one_adapter(adapter)
    weights = list(dict.fromkeys(check_weight("--weight", value) for value in weight or [0.5, 1.0, 2.0, 4.0]))
    if quick:
        limit, weights, max_new_tokens = 2, weights[:1], 16
    prompts = read_prompts(data)[:limit]
    if len(prompts) < 2:
        raise OtterError(f"{data} holds one prompt; intervals need two or more")
    plain, tokenizer = machine.load(base), load_tokenizer(base)
    limits = Limits(max_prompt_tokens, max_new_tokens)
    judges = {name: load_judge(spec, base, plain, limits) for name, spec in named_judges(judge or []).items()}
    perplexity = Perplexity(plain, tokenizer) if fluency is None else Perplexity.from_pretrained(fluency)
    model = OtterModel.from_pretrained(plain, folder, name)
    name = model.adapter_name(name, Capability.PREFIX | Capability.ADDS)
    rival = None
    if reward_model is not None:
        separate = load_rival(reward_model, plain)
        unit = unit_of(separate, plain, tokenizer, prompts, max_new_tokens, max_prompt_tokens)
        rival = Rival(separate, unit, tokenizer.pad_token_id or 0)
    methods = methods_of(plain, model, name, weights, sampled, rival)
    lines = None if out is None else out / "steering.jsonl"
    batches = steering.answer_all(
        methods, model, name, tokenizer, prompts, max_new_tokens, max_prompt_tokens, batch, seed, lines
    )
    spread, source = spread_of(model, name, batches)
    fluent = functools.partial(perplexity.of_responses, max_prompt_tokens=max_prompt_tokens)
    rated = rows_of(list(methods), tokenizer, prompts, batches, spread, fluent, judges)
    rows = [row.to_dict() for row in rated]
    used = {"spread": spread, "spread_from": source, "perplexity_under": fluency or "the base itself"}
    used |= {"judges": named_judges(judge or []), "reward_model": reward_model}
    if out is not None:
        settings = {"base": base, "adapter": folder, "data": data, "batch": batch, "seed": seed}
        drawn = "perplexity_ratio", "reward_gain"
        report.write(out, "steering", rows, settings | used, *drawn, ("reward_gain", "higher"), along="weight")
    if as_json:
        print_json({"rows": rows, **used, "machine": report.machine()})
    else:
        _show(rows, used, f"{len(prompts)} prompts, {max_new_tokens} tokens")


def _show(rows: list[dict[str, Any]], used: dict[str, Any], title: str) -> None:
    cells = [
        (
            _label(row),
            with_interval(row, "reward_gain", "+.2f"),
            with_interval(row, "share_up", ".0%"),
            f"{row['share_same']:.0%}",
            "" if row["perplexity"] is None else f"{row['perplexity']:.1f}",
            with_interval(row, "perplexity_ratio", ".2f"),
            f"{row['tokens']:.0f}",
            "" if row["distinct_2"] is None else f"{row['distinct_2']:.2f}",
            with_interval(row, "time_over_base", ".2f"),
        )
        for row in rows
    ]
    columns = ("", "gain", "up", "same", "perplexity", "ratio", "tokens", "distinct-2", "time")
    title += f"; gain in spreads of {used['spread']:.3g}, from {used['spread_from']}"
    title += f"; perplexity under {used['perplexity_under']}; 95% intervals"
    show_table(title, columns, cells)
    judged = [
        (_label(row), judge, *(with_interval(rated, name, "+.3f") for name in ("difference", "cut", "regressed")))
        for row in rows
        for judge, rated in row["judges"].items()
    ]
    if judged:
        judging = ("", "judge", "difference", "both cut", "regressed")
        show_table("judges, at equal length in the last two columns", judging, judged)


def _label(row: dict[str, Any]) -> str:
    return row["method"] if row["weight"] is None else f"{row['method']}, weight {row['weight']:g}"

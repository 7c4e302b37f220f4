"""`otter train reward`."""

from typing import Annotated

import typer

from otterlm.bases import load_base, load_tokenizer
from otterlm.cli.groups import Shape, Texts, Training, grouped
from otterlm.cli.options import AsJson, Base, Candidates, Dtype, Out, Places, Rank, parse_dtype, show_result
from otterlm.errors import OtterError
from otterlm.signals.reward.config import RewardConfig
from otterlm.training.recipes import train_reward
from otterlm.training.reward import RewardTrainingConfig


@grouped
def command(
    base: Base,
    data: Annotated[
        str, typer.Option(help="Pairs (chosen, rejected) or scored texts (text, score): file or hub dataset.")
    ],
    out: Out,
    eval_data: Annotated[str | None, typer.Option(help="Rows to evaluate on; else a part of --data.")] = None,
    shape: Shape = Shape(),
    vocabulary_rank: Rank = 16,
    compare: Annotated[
        str, typer.Option(help="Train the reward of all prefixes, or of the last token only.")
    ] = "prefixes",
    vocabulary_weight: Annotated[float, typer.Option(help="Of the vocabulary head's loss.")] = 0.5,
    probe_start: Annotated[bool, typer.Option(help="Start the head from a linear probe (pairs only).")] = True,
    trace: Annotated[float, typer.Option("--lambda", help="Of TD(lambda), for given scores on prefixes.")] = 1.0,
    candidates: Candidates = 8,
    places: Places = 8,
    training: Training = Training(),
    texts: Texts = Texts(),
    dtype: Dtype = "float32",
    as_json: AsJson = False,
) -> None:
    """Trains a reward from preference pairs or scored texts. Started again after an interruption, it goes on."""
    if compare not in ("prefixes", "last"):
        raise OtterError(f"--compare must be prefixes or last, got {compare!r}")
    config = shape.config(RewardConfig(vocabulary_rank))
    what = RewardTrainingConfig(compare, vocabulary_weight, probe_start, trace, candidates, places)  # type: ignore[arg-type]
    limits, run = texts.limits(), training.run(out)
    model, tokenizer = load_base(base, parse_dtype(dtype)), load_tokenizer(base)
    show_result(train_reward(model, tokenizer, data, config, what, limits, run, eval_data), out, as_json)

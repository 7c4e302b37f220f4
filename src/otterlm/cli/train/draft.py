"""`otter train draft`."""

from typing import Annotated

import typer

from otterlm.bases import load_base, load_tokenizer
from otterlm.cli.groups import Shape, Training, grouped
from otterlm.cli.options import AsJson, Base, Dtype, Out, Prompts, parse_dtype, show_result
from otterlm.signals.draft.config import DraftConfig
from otterlm.training.continuations import read_prompts
from otterlm.training.recipes import train_draft


@grouped
def command(
    base: Base,
    prompts: Prompts,
    out: Out,
    limit: Annotated[int | None, typer.Option(help="Only the first prompts.", min=1)] = None,
    shape: Shape = Shape(),
    draft_heads: Annotated[int, typer.Option(help="Tokens drafted one after the other.")] = 4,
    draft_width: Annotated[int, typer.Option(help="Hidden units of a draft head.")] = 512,
    draft_rank: Annotated[int, typer.Option(help="Size of the codes that the vocabulary is scored with.")] = 256,
    draft_vocabulary: Annotated[int, typer.Option(help="How many tokens, the most frequent, can be drafted.")] = 8192,
    sequential: Annotated[bool, typer.Option(help="Let a head see the tokens drafted before.")] = True,
    training: Training = Training(eval_fraction=0.05, epochs=3, evaluations_per_epoch=2, patience=4),
    max_prompt_tokens: Annotated[int, typer.Option(help="A longer prompt keeps its end.", min=1)] = 128,
    max_new_tokens: Annotated[int, typer.Option(help="Of a continuation.", min=1)] = 96,
    dtype: Dtype = "float32",
    as_json: AsJson = False,
) -> None:
    """Trains drafts on what the base itself says after the prompts. Started again after an interruption, it goes on."""
    signal = DraftConfig(draft_heads, draft_width, draft_rank, draft_vocabulary, sequential)
    config, run = shape.config(signal), training.run(out)
    found = read_prompts(prompts)[:limit]
    model, tokenizer = load_base(base, parse_dtype(dtype)), load_tokenizer(base)
    result = train_draft(model, tokenizer, found, config, max_prompt_tokens, max_new_tokens, run)
    show_result(result, out, as_json)

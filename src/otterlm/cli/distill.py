"""`otter distill`: any scorer into the model."""

from typing import Annotated

import typer

from otterlm.bases import load_base, load_tokenizer
from otterlm.cli.groups import Shape, Training, grouped
from otterlm.cli.options import AsJson, Base, Candidates, Dtype, Out, Places, Prompts, Rank, parse_dtype, show_result
from otterlm.config import RewardConfig
from otterlm.training.continuations import read_prompts
from otterlm.training.recipes import distill
from otterlm.training.responses import Sampling
from otterlm.training.reward import RewardTrainingConfig


@grouped
def command(
    base: Base,
    scorer: Annotated[
        str,
        typer.Option(help="module:name (installed or in this folder), regex:PATTERN, hf:MODEL or openai:URL#MODEL."),
    ],
    prompts: Prompts,
    out: Out,
    limit: Annotated[int | None, typer.Option(help="Only the first prompts.", min=1)] = None,
    per_prompt: Annotated[int, typer.Option(help="Responses sampled of each prompt.")] = 4,
    max_prompt_tokens: Annotated[int, typer.Option(help="A longer prompt keeps its end.")] = 128,
    max_new_tokens: Annotated[int, typer.Option(help="Of a response.")] = 64,
    temperature: Annotated[float, typer.Option(help="Of the samples.")] = 1.0,
    top_p: Annotated[float, typer.Option(help="Of the samples.")] = 1.0,
    shape: Shape = Shape(),
    vocabulary_rank: Rank = 16,
    trace: Annotated[float, typer.Option("--lambda", help="Of TD(lambda); 1 is plain regression.")] = 1.0,
    candidates: Candidates = 8,
    places: Places = 8,
    training: Training = Training(),
    dtype: Dtype = "float32",
    as_json: AsJson = False,
) -> None:
    """Trains a reward that predicts what a scorer will say. Started again after an interruption, it goes on."""
    config, run = shape.config(RewardConfig(vocabulary_rank)), training.run(out)
    sampling = Sampling(per_prompt, max_prompt_tokens, max_new_tokens, temperature, top_p, seed=training.seed)
    found = read_prompts(prompts)[:limit]
    model, tokenizer = load_base(base, parse_dtype(dtype)), load_tokenizer(base)
    reward = RewardTrainingConfig(trace=trace, candidates=candidates, places=places)
    show_result(distill(model, tokenizer, scorer, found, config, reward, sampling, run), out, as_json)

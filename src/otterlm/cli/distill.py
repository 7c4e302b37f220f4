"""`otter distill`: any scorer into the model."""

from typing import Annotated

import torch
import typer

from otterlm.bases import load_base, load_tokenizer
from otterlm.cli.options import AsJson, Base, Dtype, parse_dtype
from otterlm.cli.shape import Heads, HiddenSize, KvHeads, Layers, Rank, Units, parse_layers
from otterlm.cli.train import options
from otterlm.config import OtterConfig, RewardConfig
from otterlm.training.continuations import read_prompts
from otterlm.training.recipes import Run, distill
from otterlm.training.responses import Sampling
from otterlm.training.reward import RewardTrainingConfig
from otterlm.training.trainer import TrainingConfig


def command(
    base: Base,
    scorer: Annotated[str, typer.Option(help="module:name, regex:PATTERN, hf:MODEL or openai:URL#MODEL.")],
    prompts: Annotated[
        str, typer.Option(help="Prompts (prompt, question, text, or the dialogues of pairs): file or hub dataset.")
    ],
    out: options.Out,
    limit: Annotated[int | None, typer.Option(help="Only the first prompts.", min=1)] = None,
    per_prompt: Annotated[int, typer.Option(help="Responses sampled of each prompt.")] = 4,
    max_prompt_tokens: Annotated[int, typer.Option(help="A longer prompt keeps its end.")] = 128,
    max_new_tokens: Annotated[int, typer.Option(help="Of a response.")] = 64,
    temperature: Annotated[float, typer.Option(help="Of the samples.")] = 1.0,
    top_p: Annotated[float, typer.Option(help="Of the samples.")] = 1.0,
    eval_fraction: options.EvalFraction = 0.1,
    hidden_size: HiddenSize = 64,
    heads: Heads = 3,
    kv_heads: KvHeads = 1,
    intermediate_size: Units = 128,
    layers: Layers = None,
    vocabulary_rank: Rank = 16,
    trace: Annotated[float, typer.Option("--lambda", help="Of TD(lambda); 1 is plain regression.")] = 1.0,
    epochs: options.Epochs = 2,
    batch_size: options.BatchSize = 16,
    learning_rate: options.LearningRate = 1e-3,
    weight_decay: options.WeightDecay = 0.01,
    warmup: options.Warmup = 0.06,
    evaluations_per_epoch: options.EvaluationsPerEpoch = 4,
    patience: options.Patience = 6,
    record: options.Record = False,
    seed: options.Seed = 0,
    dtype: Dtype = "float32",
    save_dtype: options.SaveDtype = "bfloat16",
    as_json: AsJson = False,
) -> None:
    """Trains a reward that predicts what a scorer will say. Started again after an interruption, it goes on."""
    config = OtterConfig(
        hidden_size=hidden_size,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        intermediate_size=intermediate_size,
        layers=parse_layers(layers),
        signal=RewardConfig(vocabulary_rank=vocabulary_rank),
    )
    how = TrainingConfig(
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        warmup=warmup,
        evaluations_per_epoch=evaluations_per_epoch,
        patience=patience,
        seed=seed,
    )
    sampling = Sampling(per_prompt, max_prompt_tokens, max_new_tokens, temperature, top_p, seed=seed)
    run = Run(out, how, eval_fraction, record, parse_dtype(save_dtype))
    found = read_prompts(prompts)[:limit]
    torch.manual_seed(seed)
    model, tokenizer = load_base(base, parse_dtype(dtype)), load_tokenizer(base)
    reward = RewardTrainingConfig(trace=trace)
    options.show_result(distill(model, tokenizer, scorer, found, config, reward, sampling, run), out, as_json)

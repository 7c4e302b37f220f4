"""`otter train reward`."""

from typing import Annotated

import torch
import typer

from otterlm.bases import load_base, load_tokenizer
from otterlm.cli.options import AsJson, Base, Dtype, parse_dtype
from otterlm.cli.shape import Heads, HiddenSize, KvHeads, Layers, Rank, Units, parse_layers
from otterlm.cli.train import options
from otterlm.config import OtterConfig, RewardConfig
from otterlm.errors import OtterError
from otterlm.training.packing import Limits
from otterlm.training.recipes import Run, train_reward
from otterlm.training.reward import RewardTrainingConfig
from otterlm.training.trainer import TrainingConfig


def command(
    base: Base,
    data: Annotated[
        str, typer.Option(help="Pairs (chosen, rejected) or scored texts (text, score): file or hub dataset.")
    ],
    out: options.Out,
    eval_data: Annotated[str | None, typer.Option(help="Rows to evaluate on; else a part of --data.")] = None,
    eval_fraction: options.EvalFraction = 0.1,
    hidden_size: HiddenSize = 64,
    heads: Heads = 3,
    kv_heads: KvHeads = 1,
    intermediate_size: Units = 128,
    layers: Layers = None,
    vocabulary_rank: Rank = 16,
    embedding: options.Embedding = "projection",
    initialization: options.Initialization = "copy",
    compare: Annotated[
        str, typer.Option(help="Train the reward of all prefixes, or of the last token only.")
    ] = "prefixes",
    vocabulary_weight: Annotated[float, typer.Option(help="Of the vocabulary head's loss.")] = 0.5,
    probe_start: Annotated[bool, typer.Option(help="Start the head from a linear probe (pairs only).")] = True,
    trace: Annotated[float, typer.Option("--lambda", help="Of TD(lambda), for given scores on prefixes.")] = 1.0,
    candidates: Annotated[
        int, typer.Option(help="Likeliest next tokens a place that the vocabulary head is fitted to; 0: not.", min=0)
    ] = 8,
    places: Annotated[int, typer.Option(help="Places of each example with candidates.", min=1)] = 8,
    epochs: options.Epochs = 2,
    batch_size: options.BatchSize = 16,
    learning_rate: options.LearningRate = 1e-3,
    weight_decay: options.WeightDecay = 0.01,
    warmup: options.Warmup = 0.06,
    evaluations_per_epoch: options.EvaluationsPerEpoch = 4,
    patience: options.Patience = 6,
    max_prompt_tokens: int = 256,
    max_response_tokens: int = 256,
    record: options.Record = False,
    seed: options.Seed = 0,
    dtype: Dtype = "float32",
    save_dtype: options.SaveDtype = "bfloat16",
    as_json: AsJson = False,
) -> None:
    """Trains a reward from preference pairs or scored texts. Started again after an interruption, it goes on."""
    if compare not in ("prefixes", "last"):
        raise OtterError(f"--compare must be prefixes or last, got {compare!r}")
    config = OtterConfig(
        hidden_size=hidden_size,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        intermediate_size=intermediate_size,
        layers=parse_layers(layers),
        embedding=embedding,  # type: ignore[arg-type]  # checked by OtterConfig
        initialization=initialization,  # type: ignore[arg-type]
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
    what = RewardTrainingConfig(compare, vocabulary_weight, probe_start, trace, candidates, places)  # type: ignore[arg-type]
    limits = Limits(max_prompt_tokens, max_response_tokens)
    run = Run(out, how, eval_fraction, record, parse_dtype(save_dtype))
    torch.manual_seed(seed)
    model, tokenizer = load_base(base, parse_dtype(dtype)), load_tokenizer(base)
    options.show_result(train_reward(model, tokenizer, data, config, what, limits, run, eval_data), out, as_json)

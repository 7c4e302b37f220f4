"""`otter train draft`."""

from typing import Annotated

import torch
import typer

from otterlm.bases import load_base, load_tokenizer
from otterlm.cli.options import AsJson, Base, Dtype, parse_dtype
from otterlm.cli.shape import Heads, HiddenSize, KvHeads, Layers, Units, parse_layers
from otterlm.cli.train import options
from otterlm.config import DraftConfig, OtterConfig
from otterlm.errors import OtterError
from otterlm.training.continuations import read_prompts
from otterlm.training.recipes import Run, train_draft
from otterlm.training.trainer import TrainingConfig


def command(
    base: Base,
    prompts: Annotated[
        str, typer.Option(help="Prompts (prompt, question, text, or the dialogues of pairs): file or hub dataset.")
    ],
    out: options.Out,
    limit: Annotated[int | None, typer.Option(help="Only the first prompts.", min=1)] = None,
    eval_fraction: options.EvalFraction = 0.05,
    hidden_size: HiddenSize = 64,
    heads: Heads = 3,
    kv_heads: KvHeads = 1,
    intermediate_size: Units = 128,
    layers: Layers = None,
    draft_heads: Annotated[int, typer.Option(help="Tokens drafted one after the other.")] = 4,
    draft_width: Annotated[int, typer.Option(help="Hidden units of a draft head.")] = 512,
    draft_rank: Annotated[int, typer.Option(help="Size of the codes that the vocabulary is scored with.")] = 256,
    draft_vocabulary: Annotated[int, typer.Option(help="How many tokens, the most frequent, can be drafted.")] = 8192,
    sequential: Annotated[bool, typer.Option(help="Let a head see the tokens drafted before.")] = True,
    embedding: options.Embedding = "projection",
    initialization: options.Initialization = "copy",
    epochs: options.Epochs = 3,
    batch_size: options.BatchSize = 16,
    learning_rate: options.LearningRate = 1e-3,
    weight_decay: options.WeightDecay = 0.01,
    warmup: options.Warmup = 0.06,
    evaluations_per_epoch: options.EvaluationsPerEpoch = 2,
    patience: options.Patience = 4,
    max_prompt_tokens: Annotated[int, typer.Option(help="A longer prompt keeps its end.")] = 128,
    max_new_tokens: Annotated[int, typer.Option(help="Of a continuation.")] = 96,
    record: options.Record = False,
    seed: options.Seed = 0,
    dtype: Dtype = "float32",
    save_dtype: options.SaveDtype = "bfloat16",
    as_json: AsJson = False,
) -> None:
    """Trains drafts on what the base itself says after the prompts. Started again after an interruption, it goes on."""
    for name, value in (("--max-prompt-tokens", max_prompt_tokens), ("--max-new-tokens", max_new_tokens)):
        if value < 1:
            raise OtterError(f"{name} must be at least 1, got {value}")
    config = OtterConfig(
        hidden_size=hidden_size,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        intermediate_size=intermediate_size,
        layers=parse_layers(layers),
        embedding=embedding,  # type: ignore[arg-type]  # checked by OtterConfig
        initialization=initialization,  # type: ignore[arg-type]
        signal=DraftConfig(draft_heads, draft_width, draft_rank, draft_vocabulary, sequential),
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
    run = Run(out, how, eval_fraction, record, parse_dtype(save_dtype))
    found = read_prompts(prompts)[:limit]
    torch.manual_seed(seed)
    model, tokenizer = load_base(base, parse_dtype(dtype)), load_tokenizer(base)
    result = train_draft(model, tokenizer, found, config, max_prompt_tokens, max_new_tokens, run)
    options.show_result(result, out, as_json)

"""`otter train`: an adapter from data."""

from pathlib import Path
from typing import Annotated

import torch
import typer

from otterlm.bases import load_base, load_tokenizer
from otterlm.cli.options import AsJson, Base, Dtype, console, parse_dtype, print_json
from otterlm.cli.shape import Heads, HiddenSize, KvHeads, Layers, Rank, Units, parse_layers
from otterlm.config import OtterConfig, RewardConfig
from otterlm.errors import OtterError
from otterlm.training.packing import Limits
from otterlm.training.recipe import train_reward
from otterlm.training.reward import RewardTrainingConfig
from otterlm.training.trainer import TrainingConfig

app = typer.Typer(help="Train an adapter.")


@app.callback()
def _group() -> None:
    """Train an adapter."""


@app.command("reward")
def reward(
    base: Base,
    data: Annotated[
        str, typer.Option(help="Pairs (chosen, rejected) or scored texts (text, score): file or hub dataset.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the adapter, its metrics and its checkpoint.")],
    eval_data: Annotated[str | None, typer.Option(help="Rows to evaluate on; else a part of --data.")] = None,
    eval_fraction: Annotated[float, typer.Option(help="Part of --data held out, without --eval-data.")] = 0.1,
    hidden_size: HiddenSize = 64,
    heads: Heads = 3,
    kv_heads: KvHeads = 1,
    intermediate_size: Units = 128,
    layers: Layers = None,
    vocabulary_rank: Rank = 16,
    embedding: Annotated[str, typer.Option(help="projection, or table (the paper's).")] = "projection",
    initialization: Annotated[str, typer.Option(help="copy, random or normal.")] = "copy",
    compare: Annotated[
        str, typer.Option(help="Train the reward of all prefixes, or of the last token only.")
    ] = "prefixes",
    vocabulary_weight: Annotated[float, typer.Option(help="Of the vocabulary head's loss.")] = 0.5,
    probe_start: Annotated[bool, typer.Option(help="Start the head from a linear probe (pairs only).")] = True,
    epochs: int = 2,
    batch_size: int = 16,
    learning_rate: float = 1e-3,
    weight_decay: float = 0.01,
    warmup: float = 0.06,
    evaluations_per_epoch: int = 4,
    patience: int = 6,
    max_prompt_tokens: int = 256,
    max_response_tokens: int = 256,
    record: Annotated[
        bool, typer.Option(help="Keep the base's intermediates on disk, so that only the first epoch runs it.")
    ] = False,
    seed: int = 0,
    dtype: Dtype = "float32",
    save_dtype: Annotated[str, typer.Option(help="Of the saved tensors.")] = "bfloat16",
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
    what = RewardTrainingConfig(compare=compare, vocabulary_weight=vocabulary_weight, probe_start=probe_start)  # type: ignore[arg-type]
    limits = Limits(max_prompt_tokens, max_response_tokens)
    saved_as = parse_dtype(save_dtype)
    torch.manual_seed(seed)
    result = train_reward(
        load_base(base, parse_dtype(dtype)),
        load_tokenizer(base),
        data,
        out,
        config,
        what,
        how,
        limits,
        eval_data=eval_data,
        eval_fraction=eval_fraction,
        record=record,
        save_dtype=saved_as,
    )
    if as_json:
        print_json(result)
    else:
        shown = "  ".join(f"{name} {value:.4f}" for name, value in result.items() if name != "step")
        console.print(f"{shown}  (step {result['step']:.0f})\nThe adapter is in {out}")

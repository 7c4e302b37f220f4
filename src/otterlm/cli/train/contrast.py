"""`otter train contrast`."""

from typing import Annotated

import torch
import typer

from otterlm.bases import load_base, load_tokenizer
from otterlm.cli.options import AsJson, Base, Dtype, parse_dtype
from otterlm.cli.shape import Heads, HiddenSize, KvHeads, Layers, Units, parse_layers
from otterlm.cli.train import options
from otterlm.config import ContrastConfig, OtterConfig
from otterlm.errors import OtterError
from otterlm.training.corpora import read_labelled, read_texts
from otterlm.training.recipes import Run, train_contrast
from otterlm.training.trainer import TrainingConfig


def command(
    base: Base,
    out: options.Out,
    positive: Annotated[str | None, typer.Option(help="Texts to write like: file or hub dataset.")] = None,
    negative: Annotated[str | None, typer.Option(help="Texts not to write like.")] = None,
    data: Annotated[str | None, typer.Option(help="Instead of both: one file or dataset with labels.")] = None,
    text_column: Annotated[str, typer.Option(help="Which column holds the text; a.b is field b of column a.")] = "text",
    label_column: Annotated[str, typer.Option(help="With --data: which column holds the label.")] = "label",
    positive_labels: Annotated[
        str, typer.Option(help="With --data: labels to write like, such as 2 or good,fine.")
    ] = "1",
    negative_labels: Annotated[str, typer.Option(help="With --data: labels not to write like.")] = "0",
    eval_fraction: options.EvalFraction = 0.05,
    hidden_size: HiddenSize = 64,
    heads: Heads = 3,
    kv_heads: KvHeads = 1,
    intermediate_size: Units = 128,
    layers: Layers = None,
    rank: Annotated[int, typer.Option(help="Of each side's correction of the logits.")] = 32,
    embedding: options.Embedding = "projection",
    initialization: options.Initialization = "copy",
    epochs: options.Epochs = 2,
    batch_size: options.BatchSize = 32,
    learning_rate: options.LearningRate = 1e-3,
    weight_decay: options.WeightDecay = 0.01,
    warmup: options.Warmup = 0.06,
    evaluations_per_epoch: options.EvaluationsPerEpoch = 2,
    patience: options.Patience = 4,
    max_tokens: Annotated[int, typer.Option(help="Of a text; a longer one keeps its start.")] = 128,
    record: options.Record = False,
    seed: options.Seed = 0,
    dtype: Dtype = "float32",
    save_dtype: options.SaveDtype = "bfloat16",
    as_json: AsJson = False,
) -> None:
    """Trains an expert and an anti-expert, each on its own texts. Started again after an interruption, it goes on."""
    if data is not None and positive is None and negative is None:
        good, bad = ([label.strip() for label in text.split(",")] for text in (positive_labels, negative_labels))
        wanted, unwanted = read_labelled(data, good, bad, text_column, label_column)
    elif data is None and positive is not None and negative is not None:
        wanted, unwanted = read_texts(positive, text_column), read_texts(negative, text_column)
    else:
        raise OtterError("give --positive and --negative, or --data with labels")
    if max_tokens < 2:
        raise OtterError(f"--max-tokens must be at least 2, got {max_tokens}")
    config = OtterConfig(
        hidden_size=hidden_size,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        intermediate_size=intermediate_size,
        layers=parse_layers(layers),
        embedding=embedding,  # type: ignore[arg-type]  # checked by OtterConfig
        initialization=initialization,  # type: ignore[arg-type]
        signal=ContrastConfig(rank=rank),
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
    torch.manual_seed(seed)
    model, tokenizer = load_base(base, parse_dtype(dtype)), load_tokenizer(base)
    options.show_result(train_contrast(model, tokenizer, wanted, unwanted, config, max_tokens, run), out, as_json)

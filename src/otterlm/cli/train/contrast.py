"""`otter train contrast`."""

from typing import Annotated

import typer

from otterlm.bases import load_base, load_tokenizer
from otterlm.cli.groups import Shape, Training, grouped
from otterlm.cli.options import AsJson, Base, Dtype, Out, parse_dtype, show_result
from otterlm.errors import OtterError
from otterlm.signals.contrast.config import ContrastConfig
from otterlm.training.corpora import read_labelled, read_texts
from otterlm.training.recipes import distill_experts, train_contrast


@grouped
def command(
    base: Base,
    out: Out,
    positive: Annotated[str | None, typer.Option(help="Texts to write like: file or hub dataset.")] = None,
    negative: Annotated[str | None, typer.Option(help="Texts not to write like.")] = None,
    data: Annotated[str | None, typer.Option(help="Instead of both: one file or dataset with labels.")] = None,
    text_column: Annotated[str, typer.Option(help="Which column holds the text; a.b is field b of column a.")] = "text",
    label_column: Annotated[str, typer.Option(help="With --data: which column holds the label.")] = "label",
    positive_labels: Annotated[
        str, typer.Option(help="With --data: labels to write like, such as 2 or good,fine.")
    ] = "1",
    negative_labels: Annotated[str, typer.Option(help="With --data: labels not to write like.")] = "0",
    expert: Annotated[
        str | None, typer.Option(help="Instead of any texts' sides: a model that writes as wanted, and --texts.")
    ] = None,
    anti_expert: Annotated[str | None, typer.Option(help="With --expert: a model that writes as not wanted.")] = None,
    texts: Annotated[str | None, typer.Option(help="With --expert: texts such as will be steered, no labels.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="With --expert: of the base's continuations.", min=1)] = 20,
    alpha: Annotated[float, typer.Option(help="With --expert: how far the two steer.")] = 2.0,
    shape: Shape = Shape(),
    rank: Annotated[int, typer.Option(help="Of each side's correction of the logits.")] = 32,
    training: Training = Training(eval_fraction=0.05, batch_size=32, evaluations_per_epoch=2, patience=4),
    max_tokens: Annotated[int, typer.Option(help="Of a text; a longer one keeps its start.", min=2)] = 128,
    dtype: Dtype = "float32",
    as_json: AsJson = False,
) -> None:
    """Trains an expert and an anti-expert, each on its own texts, or distils two such models. Started again after an
    interruption, it goes on."""
    config, run = shape.config(ContrastConfig(rank)), training.run(out)
    corpora, models = (positive, negative, data), (expert, anti_expert, texts)
    if expert is not None and anti_expert is not None and texts is not None and corpora == (None, None, None):
        unlabelled = read_texts(texts, text_column)
        model, tokenizer = load_base(base, parse_dtype(dtype)), load_tokenizer(base)
        sides = load_base(expert, model.dtype), load_base(anti_expert, model.dtype)
        metrics = distill_experts(model, tokenizer, *sides, unlabelled, config, max_tokens, max_new_tokens, alpha, run)
        show_result(metrics, out, as_json)
        return
    if models != (None, None, None):
        raise OtterError("give --expert, --anti-expert and --texts together, and no --positive, --negative or --data")
    if data is not None and positive is None and negative is None:
        good, bad = ([label.strip() for label in text.split(",")] for text in (positive_labels, negative_labels))
        wanted, unwanted = read_labelled(data, good, bad, text_column, label_column)
    elif data is None and positive is not None and negative is not None:
        wanted, unwanted = read_texts(positive, text_column), read_texts(negative, text_column)
    else:
        raise OtterError("give --positive and --negative, or --data with labels")
    model, tokenizer = load_base(base, parse_dtype(dtype)), load_tokenizer(base)
    show_result(train_contrast(model, tokenizer, wanted, unwanted, config, max_tokens, run), out, as_json)

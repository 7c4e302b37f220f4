"""Scores rows of data by an adapter, for `otter score` and `otter calibrate`."""

from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from otterlm.bases import check_context, load_config, load_tokenizer
from otterlm.cli.groups import Machine
from otterlm.model import OtterModel
from otterlm.training.data.rows import Row
from otterlm.training.data.tokens import Limits, tokenize
from otterlm.training.evaluation.scoring import Scored, score_examples


def score_rows(
    rows: Sequence[Row],
    base: str,
    adapter: str | Path,
    adapter_name: str | None,
    limits: Limits,
    batch_size: int,
    machine: Machine,
) -> tuple[list[Scored], PreTrainedTokenizerBase]:
    """Scores rows, and returns the tokenizer, too.

    Raises:
        OtterError: base or adapter cannot be loaded, or a text exceeds the base's context.
    """
    tokenizer = load_tokenizer(base)
    examples = tokenize(rows, tokenizer, limits)
    check_context(load_config(base), max(example.longest for example in examples))
    model = OtterModel.from_pretrained(machine.load(base), adapter, adapter_name)
    return score_examples(model, examples, batch_size), tokenizer

"""`otter train draft`: prompts to a draft adapter. The base says itself what there is to learn."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from accelerate import PartialState
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from otterlm.config import OtterConfig
from otterlm.model import OtterModel
from otterlm.training.continuations import continue_prompts
from otterlm.training.draft import DraftObjective, frequent_tokens, measured_accuracy
from otterlm.training.recipes.common import Run, on_device
from otterlm.training.rows import Prompt
from otterlm.training.sources import LiveBase


def train_draft(
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    config: OtterConfig,
    max_prompt_tokens: int,
    max_new_tokens: int,
    run: Run,
) -> dict[str, float]:
    """Continues prompts, trains a draft adapter on what the base said, and saves it into `run.out`.

    Args:
        base: the frozen model.
        tokenizer: its tokenizer, padding on the left.
        prompts: as chat turns.
        config: shape of the adapter.
        max_prompt_tokens: a longer prompt keeps its end.
        max_new_tokens: length of a continuation.
        run: how and where; the continuations are kept in `run.out`, too.

    Returns:
        The metrics of the saved weights on the prompts held out.

    Raises:
        OtterError: see `continue_prompts`, `train` and `OtterModel.save_pretrained`.
    """
    base = on_device(base)
    run.begin(base, config, DraftObjective)
    with PartialState().main_process_first():
        path = run.out / "continuations.jsonl"
        examples = continue_prompts(base, tokenizer, prompts, path, max_prompt_tokens, max_new_tokens)
    train_examples, eval_examples = run.split(examples, base)
    model = OtterModel(base, config).train()
    adapter = model.adapter()
    vocabulary = frequent_tokens(train_examples, len(adapter.head.vocabulary), base.config.vocab_size)
    with torch.no_grad():
        adapter.head.vocabulary.copy_(vocabulary)
    objective = DraftObjective(model, LiveBase(model))
    run.prepare(objective, train_examples, eval_examples)
    metrics = run.train(objective, train_examples, eval_examples, tokenizer)
    signal: Any = adapter.config.signal
    signal = replace(signal, accuracy=measured_accuracy(metrics, signal.heads))
    adapter.config = replace(adapter.config, signal=signal)
    data_used = (
        f"Trained on the base's greedy continuations of {len(train_examples)} prompts, {len(eval_examples)} held out."
    )
    settings = {"max_prompt_tokens": max_prompt_tokens, "max_new_tokens": max_new_tokens}
    run.save(model, "A draft", data_used, metrics, settings)
    return metrics

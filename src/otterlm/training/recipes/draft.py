"""Makes a draft adapter of prompts (`otter train draft`). It learns the base's continuations of them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from accelerate import PartialState
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from otterlm.config import OtterConfig
from otterlm.families.facts import decoder_config
from otterlm.model import OtterModel
from otterlm.settings import check_settings, setting
from otterlm.signals.draft.objective import DraftObjective, frequent_tokens, measured_accuracy
from otterlm.training.data.conversations import Prompt
from otterlm.training.data.prompts import HELP as PROMPTS_HELP
from otterlm.training.data.prompts import read_prompts
from otterlm.training.recipes.common import Run, on_device
from otterlm.training.sources import LiveBase
from otterlm.training.teachers.continuations import continue_prompts


@dataclass(frozen=True, slots=True)
class DraftRecipe:
    """Trains drafts on what the base itself says after prompts.

    Example:
        otter train draft --base BASE --prompts prompts.jsonl --out DIR

    Attributes:
        prompts: see `otterlm.training.data.prompts.read_prompts`.
        limit: only the first prompts; None: all.
        max_prompt_tokens: a longer prompt keeps its end.
        max_new_tokens: length of a continuation.
    """

    defaults: ClassVar[Mapping[str, Any]] = {
        "epochs": 3,
        "batch_size": 16,
        "evaluations_per_epoch": 2,
        "patience": 4,
        "eval_fraction": 0.05,
    }

    prompts: str = setting(help=PROMPTS_HELP)
    limit: int | None = setting(None, "Only the first prompts.", minimum=1)
    max_prompt_tokens: int = setting(128, "A longer prompt keeps its end.", minimum=1, advanced=True)
    max_new_tokens: int = setting(96, "Length of a continuation.", minimum=1, advanced=True)

    def __post_init__(self) -> None:
        check_settings(self)

    def read(self) -> list[Prompt]:
        """Returns the prompts. Errors as in `read_prompts`."""
        return read_prompts(self.prompts)[: self.limit]

    def train(
        self,
        base: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        data: list[Prompt],
        config: OtterConfig,
        run: Run,
    ) -> dict[str, float]:
        """Trains, see `otterlm.training.recipes.base.Recipe`."""
        base = on_device(base)
        run.begin(base, config, DraftObjective)
        with PartialState().main_process_first():
            path = run.out / "continuations.jsonl"
            examples = continue_prompts(base, tokenizer, data, path, self.max_prompt_tokens, self.max_new_tokens)
        train_examples, eval_examples = run.split(examples, base)
        model = OtterModel(base, config).train()
        adapter = model.adapter()
        vocabulary = frequent_tokens(train_examples, len(adapter.head.vocabulary), decoder_config(base).vocab_size)
        with torch.no_grad():
            adapter.head.vocabulary.copy_(vocabulary)
        objective = DraftObjective(model, LiveBase(model))
        run.prepare(objective, train_examples, eval_examples)
        metrics = run.train(objective, train_examples, eval_examples, tokenizer)
        signal: Any = adapter.config.signal
        signal = replace(signal, accuracy=measured_accuracy(metrics, signal.heads))
        adapter.config = replace(adapter.config, signal=signal)
        count, held = len(train_examples), len(eval_examples)
        data_used = f"Trained on the base's greedy continuations of {count} prompts, {held} held out."
        settings = {"max_prompt_tokens": self.max_prompt_tokens, "max_new_tokens": self.max_new_tokens}
        run.save(model, "A draft", data_used, metrics, settings)
        return metrics

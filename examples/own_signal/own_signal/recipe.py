"""Makes an adapter of prompts (`otter train uncertainty`). It learns from the base's continuations of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from accelerate import PartialState
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from otterlm.config import OtterConfig
from otterlm.model import OtterModel
from otterlm.settings import check_settings, setting
from otterlm.training.data.conversations import Prompt
from otterlm.training.data.prompts import read_prompts
from otterlm.training.recipes.common import Run, on_device
from otterlm.training.sources import LiveBase
from otterlm.training.teachers.continuations import continue_prompts
from own_signal.objective import UncertaintyObjective


@dataclass(frozen=True, slots=True)
class UncertaintyRecipe:
    """Trains a signal that says how unsure the base is going to be.

    Example:
        otter train uncertainty --base BASE --prompts prompts.jsonl --out DIR

    Attributes:
        prompts: what the base continues.
        limit: only the first prompts; None: all.
        max_prompt_tokens: a longer prompt keeps its end.
        max_new_tokens: length of a continuation.
    """

    defaults: ClassVar[Mapping[str, Any]] = {"epochs": 2, "batch_size": 8, "eval_fraction": 0.2}

    prompts: str = setting(help="Prompts (prompt, question or text): file or hub dataset.")
    limit: int | None = setting(None, "Only the first prompts.", minimum=1)
    max_prompt_tokens: int = setting(128, "A longer prompt keeps its end.", minimum=1)
    max_new_tokens: int = setting(64, "Of a continuation.", minimum=1)

    def __post_init__(self) -> None:
        check_settings(self)

    def read(self) -> list[Prompt]:
        """Returns the prompts."""
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
        run.begin(base, config, UncertaintyObjective)
        with PartialState().main_process_first():
            path = run.out / "continuations.jsonl"
            examples = continue_prompts(base, tokenizer, data, path, self.max_prompt_tokens, self.max_new_tokens)
        train_examples, eval_examples = run.split(examples, base)
        model = OtterModel(base, config).train()
        objective = UncertaintyObjective(model, LiveBase(model))
        run.prepare(objective, train_examples, eval_examples)
        metrics = run.train(objective, train_examples, eval_examples, tokenizer)
        data_used = f"Trained on the base's greedy continuations of {len(train_examples)} prompts."
        run.save(model, "An uncertainty", data_used, metrics, {"max_new_tokens": self.max_new_tokens})
        return metrics

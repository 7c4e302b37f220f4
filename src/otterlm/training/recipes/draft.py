"""Makes a draft adapter of prompts (`otter train draft`). It learns the base's continuations of them."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from otterlm.config import OtterConfig
from otterlm.errors import OtterError
from otterlm.families.facts import decoder_config
from otterlm.model import OtterModel
from otterlm.settings import check_settings, setting
from otterlm.signals.draft.objective import (
    DraftObjective,
    DraftTrainingConfig,
    frequent_tokens,
    measured_accuracy,
)
from otterlm.training.config import RATE
from otterlm.training.data.continuations import HELP as DATA_HELP
from otterlm.training.data.continuations import Continuation, continuation_examples, read_continuations
from otterlm.training.data.conversations import Prompt
from otterlm.training.data.packing import Example
from otterlm.training.data.prompts import HELP as PROMPTS_HELP
from otterlm.training.data.prompts import read_prompts
from otterlm.training.data.stored_examples import on_disk
from otterlm.training.data.tokens import Limits
from otterlm.training.processes import this_process
from otterlm.training.recipes.common import Run, on_device
from otterlm.training.sources import LiveBase
from otterlm.training.teachers.continuations import continue_prompts

DRAFT_PROMPT, DRAFT_RESPONSE = 128, 96
"""The limits of prompts and of continuations that the recipe has the base generate, in tokens."""


@dataclass(frozen=True, slots=True)
class DraftRecipe:
    """Trains drafts on what the base itself says after prompts.

    Example:
        otter train draft --base BASE --prompts prompts.jsonl --out DIR

    Attributes:
        prompts: see `otterlm.training.data.prompts.read_prompts`; the base continues them greedily.
        data: in their place, continuations that the base has made already; see
            `otterlm.training.data.continuations.read_continuations`.
        limit: only the first prompts or continuations; None: all.
        max_prompt_tokens: a longer prompt keeps its end; None: `DRAFT_PROMPT`, and all of ready ones.
        max_new_tokens: length of a continuation; None: `DRAFT_RESPONSE`, and all of ready ones.
        learning: what is learned.
    """

    defaults: ClassVar[Mapping[str, Any]] = {
        "epochs": 3,
        "batch_size": 16,
        "evaluations_per_epoch": 2,
        "patience": 4,
        "eval_fraction": 0.05,
        "learning_rate": RATE,  # for many steps; less was not measured
    }

    prompts: str | None = setting(None, PROMPTS_HELP)
    data: str | None = setting(None, DATA_HELP)
    limit: int | None = setting(None, "Only the first prompts or continuations.", minimum=1)
    max_prompt_tokens: int | None = setting(
        None, f"A longer prompt keeps its end. By default {DRAFT_PROMPT}; all of ready ones.", minimum=1, advanced=True
    )
    max_new_tokens: int | None = setting(
        None, f"Length of a continuation. By default {DRAFT_RESPONSE}; all of ready ones.", minimum=1, advanced=True
    )
    learning: DraftTrainingConfig = DraftTrainingConfig()

    def __post_init__(self) -> None:
        check_settings(self)
        if (self.prompts is None) == (self.data is None):
            raise OtterError("give either prompts (--prompts), which the base continues, or its continuations (--data)")

    def read(self) -> Sequence[Prompt] | Sequence[Continuation]:
        """Returns the prompts or the continuations. Errors as in `read_prompts` and `read_continuations`."""
        if self.data is not None:
            return read_continuations(self.data, self.limit)
        assert self.prompts is not None
        return read_prompts(self.prompts)[: self.limit]

    def examples(
        self,
        base: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        data: Sequence[Prompt] | Sequence[Continuation],
        out: Path,
    ) -> Sequence[Example]:
        """Returns the texts that are learned. The base generates what is not ready, into `out/continuations.jsonl`."""
        limits = self.limits
        if self.data is not None:
            return continuation_examples(cast("Sequence[Continuation]", data), tokenizer, limits)
        longest, path = (limits.prompt, limits.response), out / "continuations.jsonl"
        return on_disk(continue_prompts(base, tokenizer, cast("Sequence[Prompt]", data), path, *longest))

    @property
    def limits(self) -> Limits:
        """Returns the limits of prompts and of continuations; what is ready is used whole by default."""
        prompt, response = (DRAFT_PROMPT, DRAFT_RESPONSE) if self.data is None else (sys.maxsize, sys.maxsize)
        return Limits(self.max_prompt_tokens or prompt, self.max_new_tokens or response)

    def train(
        self,
        base: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        data: Sequence[Prompt] | Sequence[Continuation],
        config: OtterConfig,
        run: Run,
    ) -> dict[str, float]:
        """Trains, see `otterlm.training.recipes.base.Recipe`."""
        if self.data is None:
            run.needs_whole_base("the base continues the prompts")
            base = on_device(base)
        run = run.begin(base, config, DraftObjective)
        with this_process().main_process_first():
            examples = self.examples(base, tokenizer, data, run.out)
        train_examples, eval_examples = run.split(examples, base)
        model = run.model(base, config).train()
        choose_vocabulary(model, train_examples)
        objective = DraftObjective(model, LiveBase(model), self.learning)
        run.prepare(objective, train_examples, eval_examples)
        metrics = run.train(objective, train_examples, eval_examples, tokenizer)
        kind = "ready continuations" if self.data is not None else "greedy continuations of prompts"
        limits = {"max_prompt_tokens": self.limits.prompt, "max_new_tokens": self.limits.response}
        settings = {name: most for name, most in limits.items() if most < sys.maxsize} | asdict(self.learning)
        sources = (self.prompts, self.data)
        save_draft(model, run, kind, (train_examples, eval_examples), metrics, settings, sources)
        return metrics


def choose_vocabulary(model: OtterModel, examples: Sequence[Example]) -> None:
    """Sets the tokens that a new draft adapter, the model's only one, can draft: the base's frequent ones."""
    vocabulary = model.adapter().head.vocabulary
    size = decoder_config(model.base_model).vocab_size
    with torch.no_grad():
        vocabulary.copy_(frequent_tokens(examples, len(vocabulary), size))


def save_draft(
    model: OtterModel,
    run: Run,
    kind: str,
    examples: tuple[Sequence[Example], Sequence[Example]],
    metrics: dict[str, float],
    settings: dict[str, Any],
    sources: Sequence[object] = (),
) -> None:
    """Saves a trained draft adapter, with the measured accuracy of its heads.

    Args:
        model: with the adapter.
        run: its folder.
        kind: what the texts are called.
        examples: those to train on, and those held out.
        metrics: of the saved weights on the latter.
        settings: more rows for the card's table.
        sources: see `Run.save`.
    """
    adapter = model.adapter()
    signal: Any = adapter.config.signal
    signal = replace(signal, accuracy=measured_accuracy(metrics, signal.heads))
    adapter.config = replace(adapter.config, signal=signal)
    count, held = map(len, examples)
    tokens = sum(len(example.branches[0]) for example in examples[0])
    data_used = f"Trained on the base's {kind}: {count}, with {tokens} tokens; {held} held out."
    run.save(model, "A draft", data_used, metrics, settings, sources)

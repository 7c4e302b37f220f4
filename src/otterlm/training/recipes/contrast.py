"""Makes a contrast adapter of a wanted and an unwanted corpus (`otter train contrast`)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from otterlm.config import OtterConfig
from otterlm.errors import OtterError
from otterlm.settings import check_settings, setting
from otterlm.signals.contrast.objective import ContrastObjective
from otterlm.training.data.corpora import iterate_corpora, iterate_texts, read_labelled
from otterlm.training.data.stored_examples import on_disk
from otterlm.training.data.stored_items import StoredItems
from otterlm.training.recipes.common import Run
from otterlm.training.sources import LiveBase


@dataclass(frozen=True, slots=True)
class ContrastRecipe:
    """Trains an expert and an anti-expert, each on its own texts.

    Example:
        otter train contrast --base BASE --positive good.txt \\
            --negative bad.txt --out DIR

    Attributes:
        positive, negative: texts to write like and not to write like; or
        data: both in one, distinguished by their labels.
        text_column, label_column: see `otterlm.training.data.corpora.read_labelled`.
        positive_labels, negative_labels: with `data`, separated by commas.
        max_tokens: of a text; a longer one keeps its start.
    """

    defaults: ClassVar[Mapping[str, Any]] = {
        "epochs": 2,
        "batch_size": 32,
        "evaluations_per_epoch": 2,
        "patience": 4,
        "eval_fraction": 0.05,
    }

    positive: str | None = setting(None, "Texts to write like: file or hub dataset.")
    negative: str | None = setting(None, "Texts not to write like.")
    data: str | None = setting(None, "Both in one: texts with labels.")
    text_column: str = setting("text", "Where the text is; a.b is field b of a.", advanced=True)
    label_column: str = setting("label", "With --data: where the label is.", advanced=True)
    positive_labels: str = setting("1", "With --data: labels to write like, separated by commas.")
    negative_labels: str = setting("0", "With --data: labels not to write like.")
    max_tokens: int = setting(128, "Length of a text; a longer one keeps its start.", minimum=2, advanced=True)

    def __post_init__(self) -> None:
        check_settings(self)

    def read(self) -> tuple[Sequence[str], Sequence[str]]:
        """Returns the wanted and the unwanted texts, on the disk.

        Raises:
            OtterError: see `read_texts` and `read_labelled`, or one of the two kinds is missing.
        """
        if self.data is not None and self.positive is None and self.negative is None:
            sides = self.positive_labels, self.negative_labels
            good, bad = ([label.strip() for label in labels.split(",")] for labels in sides)
            return read_labelled(self.data, good, bad, self.text_column, self.label_column)
        if self.data is None and self.positive is not None and self.negative is not None:
            positive, negative = (
                StoredItems(iterate_texts(source, self.text_column)) for source in (self.positive, self.negative)
            )
            return positive, negative
        raise OtterError("give --positive and --negative, or --data with labels")

    def train(
        self,
        base: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        data: tuple[Sequence[str], Sequence[str]],
        config: OtterConfig,
        run: Run,
    ) -> dict[str, float]:
        """Trains, see `otterlm.training.recipes.base.Recipe`."""
        run = run.begin(base, config, ContrastObjective)
        positive, negative = data
        examples = on_disk(iterate_corpora(positive, negative, tokenizer, self.max_tokens))
        train_examples, eval_examples = run.split(examples, base)
        model = run.model(base, config).train()
        objective = ContrastObjective(model, LiveBase(model))
        run.prepare(objective, train_examples, eval_examples)
        metrics = run.train(objective, train_examples, eval_examples, tokenizer)
        data_used = (
            f"Trained on {len(positive)} wanted and {len(negative)} unwanted texts, {len(eval_examples)} held out."
        )
        sources = (self.data, self.positive, self.negative)
        run.save(model, "A contrast", data_used, metrics, {"max_tokens": self.max_tokens}, sources)
        return metrics

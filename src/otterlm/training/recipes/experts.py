"""Makes a contrast adapter of two models, which it replaces (`otter distill contrast`)."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from otterlm.bases import load_base
from otterlm.checks import check_weight
from otterlm.config import OtterConfig
from otterlm.errors import OtterError
from otterlm.settings import check_settings, setting
from otterlm.signals.contrast.experts_objective import ExpertsObjective
from otterlm.training.data.corpora import read_texts
from otterlm.training.data.stored_examples import on_disk
from otterlm.training.processes import this_process
from otterlm.training.recipes.common import Run, on_device
from otterlm.training.sources import LiveBase
from otterlm.training.teachers.continuations import continue_texts
from otterlm.training.teachers.experts import ExpertOpinions


@dataclass(frozen=True, slots=True)
class ExpertsRecipe:
    """Distils an expert and an anti-expert into one contrast.

    Both are language models. The base continues texts, the two read along, and the contrast learns to steer as they do.

    Example:
        otter distill contrast --base BASE --expert GOOD \\
            --anti-expert BAD --texts texts.jsonl --out DIR

    Attributes:
        expert, anti_expert: language models with the base's vocabulary, see `otterlm.bases.load_base`.
        texts: such as will be steered; no labels.
        text_column: see `otterlm.training.data.corpora.read_texts`.
        max_tokens: of a text; a longer one keeps its start.
        max_new_tokens: of its continuation.
        alpha: how far the experts steer.
    """

    defaults: ClassVar[Mapping[str, Any]] = {
        "epochs": 2,
        "batch_size": 32,
        "evaluations_per_epoch": 2,
        "patience": 4,
        "eval_fraction": 0.05,
    }
    unused: ClassVar[Collection[str]] = ("shard",)

    expert: str = setting(help="A model that writes as wanted.")
    anti_expert: str = setting(help="A model that writes as not wanted.")
    texts: str = setting(help="Texts such as will be steered, no labels: file or hub dataset.")
    text_column: str = setting("text", "Where the text is; a.b is field b of a.", advanced=True)
    max_tokens: int = setting(128, "Length of a text; a longer one keeps its start.", minimum=2, advanced=True)
    max_new_tokens: int = setting(20, "Length of the base's continuations.", minimum=1, advanced=True)
    alpha: float = setting(2.0, "How far the two steer.")

    def __post_init__(self) -> None:
        check_settings(self)
        if check_weight("alpha", self.alpha) == 0:
            raise OtterError("with alpha 0 the experts do not steer: there is nothing to learn")

    def read(self) -> list[str]:
        """Returns the texts. Errors as in `read_texts`."""
        return read_texts(self.texts, self.text_column)

    def train(
        self,
        base: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        data: list[str],
        config: OtterConfig,
        run: Run,
    ) -> dict[str, float]:
        """Trains, see `otterlm.training.recipes.base.Recipe`."""
        run.needs_whole_base("the base continues the texts")
        base = on_device(base)
        run = run.begin(base, config, ExpertsObjective)
        with this_process().main_process_first():
            path = run.out / "continuations.jsonl"
            examples = on_disk(continue_texts(base, tokenizer, data, path, self.max_tokens, self.max_new_tokens))
            expert, anti = (on_device(load_base(name, base.dtype)).eval() for name in (self.expert, self.anti_expert))
            opinions = ExpertOpinions(base, expert, anti, examples, run.out / "opinions.f32")
        train_examples, eval_examples = run.split(examples, base)
        model = run.model(base, config).train()
        objective = ExpertsObjective(model, LiveBase(model), opinions, self.alpha)
        run.prepare(objective, train_examples, eval_examples)
        metrics = run.train(objective, train_examples, eval_examples, tokenizer)
        data_used = f"Distilled from an expert and an anti-expert on {len(train_examples)} texts and the base's own "
        data_used += f"continuations of them, {len(eval_examples)} held out."
        settings = {"max_tokens": self.max_tokens, "max_new_tokens": self.max_new_tokens, "alpha": self.alpha}
        run.save(model, "A contrast", data_used, metrics, settings)
        return metrics

"""`otter train reward` turns preference pairs or scored texts into a reward adapter that steers."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from otterlm.config import OtterConfig
from otterlm.errors import OtterError
from otterlm.settings import check_settings, setting
from otterlm.signals.reward.objective import RewardObjective, RewardTrainingConfig
from otterlm.training.data.encoding import stored_tokens
from otterlm.training.data.records import source_name
from otterlm.training.data.rows import Row, hold_out, iterate_rows
from otterlm.training.data.stored_items import StoredItems
from otterlm.training.data.tokens import Limits
from otterlm.training.evaluation.scoring import score_ends, summarize
from otterlm.training.processes import this_process
from otterlm.training.recipes.common import Run
from otterlm.training.recipes.reward_fit import learn_reward, learn_to_steer, save_reward
from otterlm.training.recipes.values import Values, learn_values, prompts_of


@dataclass(frozen=True, slots=True)
class RewardRecipe:
    """Trains a reward from preference pairs or scored texts.

    A second stage makes it a guide: the base samples responses to the prompts, the trained reward rates them whole, and
    every prefix learns the reward that is expected at the end.

    Example:
        otter train reward --base BASE --data pairs.csv --out DIR

    Attributes:
        data: see `otterlm.training.data.rows.read_rows`.
        eval_data: rows to evaluate on; without it, a part of `data` is held out.
        learning: what is learned.
        workers: processes that turn texts into tokens; 0: this one.
        limits: tokens of a prompt and of a response.
        values: the second stage. Texts without prompts have none.
    """

    defaults: ClassVar[Mapping[str, Any]] = {
        "epochs": 2,
        "batch_size": 16,
        "evaluations_per_epoch": 4,
        "patience": 6,
    }

    data: str = setting(help="Pairs (chosen, rejected) or scored texts (text, score): file or hub dataset.")
    eval_data: str | None = setting(None, "Rows to evaluate on; else a part of --data.")
    workers: int = setting(0, "Processes that turn texts into tokens; 0: this one.", minimum=0, advanced=True)
    learning: RewardTrainingConfig = setting(RewardTrainingConfig(), advanced=True)
    limits: Limits = setting(Limits(), advanced=True)
    values: Values = Values()

    def __post_init__(self) -> None:
        check_settings(self)

    def read(self) -> tuple[StoredItems[Row], int]:
        """Returns all rows, on the disk, and how many of them, the last ones, are those to evaluate on.

        Raises:
            OtterError: see `read_rows`, or pairs and scored texts are mixed.
        """
        counts: list[int] = []
        rows = StoredItems(self._rows(counts))
        return rows, sum(counts[1:])

    def _rows(self, counts: list[int]) -> Iterator[Row]:
        """Yields the rows of the data, and appends how many each source has."""
        first: Row | None = None
        for source in (self.data, self.eval_data):
            if source is None:
                continue
            counts.append(0)
            for row in iterate_rows(source):
                first = first or row
                if type(row) is not type(first):
                    raise OtterError("the data mixes pairs with scored texts: train on one kind at a time")
                counts[-1] += 1
                yield row

    def train(
        self,
        base: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        data: tuple[Collection[Row], int],
        config: OtterConfig,
        run: Run,
    ) -> dict[str, float]:
        """Trains the adapter, see `otterlm.training.recipes.base.Recipe`. `data` may also hold a list of rows."""
        if self.values.values:
            run.needs_whole_base("the second stage (--values) has the base write responses")
        run = run.begin(base, config, RewardObjective)
        rows, more = data
        held = set(range(len(rows) - more, len(rows)))
        if not more:
            held = hold_out(rows, run.eval_fraction, run.training.seed)
        prompts = prompts_of(rows, held, self.values.value_prompts) if self.values.values else []
        limit = self.limits.prompt
        answers = self.values.ready(prompts, tokenizer, limit)  # before the first stage, which takes long
        with this_process().main_process_first():
            examples = stored_tokens(rows, tokenizer, self.limits, self.workers)
        settings = {f"max_{name}_tokens": value for name, value in asdict(self.limits).items()} | asdict(self.learning)
        train_examples, held_out = run.split(examples, base, held)
        model, seed = run.model(base, config), run.training.seed
        metrics = learn_reward(model, tokenizer, train_examples, held_out, self.learning, run)

        def save(more: dict[str, float]) -> None:
            counts, sources = (len(train_examples), len(held)), (self.data, self.eval_data)
            save_reward(model, run, source_name(self.data), counts, metrics | more, settings, sources)

        if len(prompts) > 1:
            settings |= self.values.described()
            metrics |= learn_values(model, tokenizer, prompts, answers, self.values, limit, self.learning, run, save)
            # The second stage moves the reward, too.
            again = summarize(score_ends(model, held_out, run.training.batch_size))
            metrics |= {name: value for name, value in again.items() if isinstance(value, float)}
        else:
            save({})
            metrics |= learn_to_steer(model, train_examples, self.learning, seed, run.training.batch_size)
        save({})
        return metrics

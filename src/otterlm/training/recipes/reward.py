"""`otter train reward`: preference pairs or scored texts to a reward adapter."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from otterlm.config import OtterConfig
from otterlm.errors import OtterError
from otterlm.families.parts import weight_of
from otterlm.model import OtterModel
from otterlm.settings import setting
from otterlm.signals.reward.objective import RewardObjective, RewardTrainingConfig, start_from_probe
from otterlm.training.data.packing import Example
from otterlm.training.data.records import source_name
from otterlm.training.data.rows import PairRow, Row, hold_out, read_rows
from otterlm.training.data.tokens import Limits, tokenize
from otterlm.training.evaluation.scoring import correlations, score_examples
from otterlm.training.recipes.common import Run, on_device
from otterlm.training.sources import LiveBase
from otterlm.training.vocabulary_head import fit_vocabulary, read_candidates


@dataclass(frozen=True, slots=True)
class RewardRecipe:
    """Trains a reward from preference pairs or scored texts.

    Attributes:
        data: see `otterlm.training.data.rows.read_rows`.
        eval_data: rows to evaluate on; without it, a part of `data` is held out.
        learning: what is learned.
        limits: tokens of a prompt and of a response.
    """

    defaults: ClassVar[Mapping[str, Any]] = {
        "epochs": 2,
        "batch_size": 16,
        "evaluations_per_epoch": 4,
        "patience": 6,
    }

    data: str = setting(help="Pairs (chosen, rejected) or scored texts (text, score): file or hub dataset.")
    eval_data: str | None = setting(None, "Rows to evaluate on; else a part of --data.")
    learning: RewardTrainingConfig = RewardTrainingConfig()
    limits: Limits = Limits()

    def read(self) -> tuple[list[Row], int]:
        """Returns all rows, and how many of them, the last ones, are those to evaluate on.

        Raises:
            OtterError: see `read_rows`, or pairs and scored texts are mixed.
        """
        rows = read_rows(self.data)
        more = [] if self.eval_data is None else read_rows(self.eval_data)
        if len({isinstance(row, PairRow) for row in (*rows, *more)}) != 1:
            raise OtterError("the data mixes pairs with scored texts: train on one kind at a time")
        return [*rows, *more], len(more)

    def train(
        self,
        base: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        data: tuple[list[Row], int],
        config: OtterConfig,
        run: Run,
    ) -> dict[str, float]:
        """See `otterlm.training.recipes.base.Recipe`."""
        run.begin(base, config, RewardObjective)
        rows, more = data
        held = set(range(len(rows) - more, len(rows)))
        if not more:
            held = hold_out(rows, run.eval_fraction, run.training.seed)
        examples = tokenize(rows, tokenizer, self.limits)
        settings = {f"max_{name}_tokens": value for name, value in asdict(self.limits).items()}
        return fit_reward(base, tokenizer, examples, held, config, self.learning, run, source_name(self.data), settings)


def fit_reward(
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    held: set[int],
    config: OtterConfig,
    reward: RewardTrainingConfig,
    run: Run,
    data: str,
    settings: dict[str, Any],
) -> dict[str, float]:
    """Trains a reward adapter on packed pairs or scored texts and saves it into `run.out`.

    Args:
        base, tokenizer, config, run: see `otterlm.training.recipes.base.Recipe`.
        reward: what is learned.
        examples: what to learn from and to evaluate on.
        held: rows of the latter.
        data: what the examples are called on the card.
        settings: what else the card should list.

    Returns:
        The metrics of the saved weights on the held-out rows; for scored texts with `correlation_P`, that of the reward
        after P percent of a response with its score.
    """
    train_examples, eval_examples = run.split(examples, base, held)
    model = OtterModel(on_device(base), config).train()
    objective = RewardObjective(model, LiveBase(model), reward)
    run.prepare(objective, train_examples, eval_examples)
    pairs = examples[0].is_pair
    if reward.probe_start and pairs and not run.resumes:
        start_from_probe(objective, train_examples)
    metrics = run.train(objective, train_examples, eval_examples, tokenizer)
    model.eval()
    if not pairs:
        metrics = metrics | correlations(score_examples(model, eval_examples))
    head = model.adapter().head.vocabulary
    if head is not None and reward.candidates:
        found = read_candidates(model, train_examples, reward.candidates, reward.places, run.training.seed)
        unembedding = weight_of(base.get_output_embeddings())
        metrics = metrics | {"vocabulary_explained": fit_vocabulary(head, unembedding, found)}
    data_used = f"Trained on {len(train_examples)} rows of `{data}`, {len(eval_examples)} held out."
    run.save(model, "A reward", data_used, metrics, asdict(reward) | settings)
    return metrics

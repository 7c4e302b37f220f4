"""`otter train reward`: preference pairs or scored texts to a reward adapter."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from otterlm.config import OtterConfig
from otterlm.errors import OtterError
from otterlm.families.parts import weight_of
from otterlm.model import OtterModel
from otterlm.training.packing import Example, Limits, tokenize
from otterlm.training.recipes.common import Run, on_device
from otterlm.training.reward import RewardObjective, RewardTrainingConfig, start_from_probe
from otterlm.training.rows import PairRow, hold_out, read_rows
from otterlm.training.scoring import correlations, score_examples
from otterlm.training.sources import LiveBase
from otterlm.training.vocabulary import fit_vocabulary, read_candidates


def train_reward(
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data: str,
    config: OtterConfig,
    reward: RewardTrainingConfig,
    limits: Limits,
    run: Run,
    eval_data: str | None = None,
) -> dict[str, float]:
    """Trains a reward adapter and saves it into `run.out`.

    Args:
        base: the frozen model.
        tokenizer: its tokenizer.
        data: pairs or scored texts, see `otterlm.training.rows.read_rows`.
        config: shape of the adapter.
        reward: what is learned.
        limits: tokens of a prompt and of a response.
        run: how and where.
        eval_data: rows to evaluate on; without it, a part of `data` is held out.

    Returns:
        The metrics of the saved weights on the rows to evaluate on.

    Raises:
        OtterError: see `read_rows`, `train` and `OtterModel.save_pretrained`.
    """
    run.begin(base, config, RewardObjective)
    rows = read_rows(data)
    if eval_data is None:
        held = hold_out(rows, run.eval_fraction, run.training.seed)
    else:
        held = set(range(len(rows), len(rows) + len(more := read_rows(eval_data))))
        rows = [*rows, *more]
    pairs = {isinstance(row, PairRow) for row in rows}
    if len(pairs) != 1:
        raise OtterError("the data mixes pairs with scored texts: train on one kind at a time")
    examples = tokenize(rows, tokenizer, limits)
    settings = {f"max_{name}_tokens": value for name, value in asdict(limits).items()}
    return fit_reward(base, tokenizer, examples, held, config, reward, run, Path(data).name, settings)


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
        base, tokenizer, config, reward, run: as in `train_reward`.
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
    pairs = len(examples[0].branches) == 2
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

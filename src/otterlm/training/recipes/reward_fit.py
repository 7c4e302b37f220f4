"""The stages that make a reward adapter: learning from examples, fitting the vocabulary head, saving."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from otterlm.families.parts import weight_of
from otterlm.model import OtterModel
from otterlm.signals.reward.objective import RewardObjective, RewardTrainingConfig, start_from_probe
from otterlm.training.data.packing import Example
from otterlm.training.evaluation.scoring import correlations, score_examples
from otterlm.training.recipes.common import Run
from otterlm.training.sources import LiveBase
from otterlm.training.vocabulary_head import fit_vocabulary, read_candidates


def learn_reward(
    model: OtterModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    held: set[int],
    learning: RewardTrainingConfig,
    run: Run,
) -> dict[str, float]:
    """Trains an adapter on packed pairs or scored texts, and leaves the best weights in it.

    Args:
        model: the base with the adapter.
        tokenizer: the base's.
        examples: what to learn from and to evaluate on.
        held: rows of the latter.
        learning: what is learned.
        run: how and where.

    Returns:
        The metrics of the best weights on the held-out rows; for scored texts with `correlation_P`, the correlation of
        the reward after P percent of a response with its score.
    """
    train_examples, eval_examples = run.split(examples, model.base_model, held)
    objective = RewardObjective(model.train(), LiveBase(model), learning)
    run.prepare(objective, train_examples, eval_examples)
    pairs = examples[0].is_pair
    if learning.probe_start and pairs and not run.resumes:
        start_from_probe(objective, train_examples)
    metrics = run.train(objective, train_examples, eval_examples, tokenizer)
    model.eval()
    if not pairs:
        metrics = metrics | correlations(score_examples(model, eval_examples))
    return metrics


def learn_to_steer(
    model: OtterModel, examples: Sequence[Example], learning: RewardTrainingConfig, seed: int
) -> dict[str, float]:
    """Fits the vocabulary head to the base's plausible next tokens, and measures the unit of a steering weight.

    Args:
        model: the base with the trained adapter.
        examples: places of their responses are what the head is fitted to.
        learning: how many candidates and places.
        seed: of the places.

    Returns:
        `vocabulary_explained`, see `fit_vocabulary`; nothing where the adapter has no vocabulary head or `candidates`
        is 0.
    """
    adapter = model.adapter()
    head = adapter.head.vocabulary
    if head is None or not learning.candidates:
        return {}
    candidates = read_candidates(model, examples, learning.candidates, learning.places, seed)
    explained, spread = fit_vocabulary(head, weight_of(model.base_model.get_output_embeddings()), candidates)
    signal = replace(adapter.config.signal, advantage_spread=spread)
    adapter.config = replace(adapter.config, signal=signal)
    return {"vocabulary_explained": explained}


def save_reward(
    model: OtterModel,
    run: Run,
    data: str,
    counts: tuple[int, int],
    metrics: dict[str, float],
    settings: dict[str, Any],
) -> None:
    """Saves a trained reward with its card.

    Args:
        model: the base with the adapter.
        run: whose folder.
        data: what the examples are called on the card.
        counts: rows trained on, and held out.
        metrics: on the rows held out.
        settings: what else the card should list.
    """
    data_used = f"Trained on {counts[0]} rows of `{data}`, {counts[1]} held out."
    run.save(model, "A reward", data_used, metrics, settings)

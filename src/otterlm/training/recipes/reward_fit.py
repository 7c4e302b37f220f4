"""Takes the stages that make a reward adapter: learning from examples, fitting the vocabulary head, saving."""

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from otterlm.families.parts import weight_of
from otterlm.model import OtterModel
from otterlm.signals.reward.objective import RewardObjective, RewardTrainingConfig, start_from_probe
from otterlm.training.data.packing import Example
from otterlm.training.evaluation.scoring import correlations, score_examples
from otterlm.training.recipes.common import Run
from otterlm.training.sources import LiveBase
from otterlm.training.vocabulary_fit import FitConfig, fit_vocabulary
from otterlm.training.vocabulary_head import read_steps

EXPLAINED = "vocabulary_explained"
"""The metric of `learn_to_steer`."""


def learn_reward(
    model: OtterModel,
    tokenizer: PreTrainedTokenizerBase,
    train_examples: Sequence[Example],
    eval_examples: Sequence[Example],
    learning: RewardTrainingConfig,
    run: Run,
) -> dict[str, float]:
    """Trains an adapter on packed pairs or scored texts, and leaves the best weights in it.

    Args:
        model: the base with the adapter.
        tokenizer: the base's.
        train_examples, eval_examples: what to learn from and what to evaluate on, see `Run.split`.
        learning: what is learned.
        run: how and where.

    Returns:
        The metrics of the best weights on the held-out rows; for scored texts with `correlation_P`, the correlation of
        the reward after P percent of a response with its score.
    """
    objective = RewardObjective(model.train(), LiveBase(model), learning)
    run.prepare(objective, train_examples, eval_examples)
    pairs = train_examples[0].is_pair
    if pairs and learning.probe_start and not run.resumes:
        start_from_probe(objective, train_examples, run.training.batch_size)
    metrics = run.train(objective, train_examples, eval_examples, tokenizer)
    model.eval()
    if not pairs:
        metrics = metrics | correlations(score_examples(model, eval_examples, run.training.batch_size))
    return metrics


def learn_to_steer(
    model: OtterModel, examples: Sequence[Example], learning: RewardTrainingConfig, seed: int, batch_size: int = 8
) -> dict[str, float]:
    """Fits the vocabulary head to the base's plausible next tokens, and measures the unit of a steering weight.

    Args:
        model: the base with the trained adapter.
        examples: positions of their responses are what the head is fitted to.
        learning: how many candidates, positions and tokens.
        seed: of the positions.
        batch_size: examples a pass.

    Returns:
        `vocabulary_explained`, see `fit_vocabulary`; nothing where the adapter has no vocabulary head, `candidates` is
        0, or the base cannot read candidates side by side.
    """
    head = model.adapter().head.vocabulary
    heads = [] if head is None else [head]
    some = at_most(examples, learning.fit_tokens, seed)
    fits = fit_heads(model, heads, some, learning.candidates, learning.positions, seed, batch_size)
    if not fits:
        return {}
    ((explained, spread),) = fits
    if spread > 0:
        _set(model, advantage_spread=spread)
    return {EXPLAINED: explained}


def fit_heads(
    model: OtterModel,
    heads: Sequence[Any],
    examples: Sequence[Example],
    candidates: int,
    positions: int,
    seed: int,
    batch_size: int = 8,
) -> list[tuple[float, float]]:
    """Fits vocabulary heads to the base's plausible next tokens.

    Args:
        model: the base with the trained adapter.
        heads: of the adapter, one for each number of its signal.
        examples: positions of their responses are what the heads are fitted to.
        candidates, positions: how many, see `read_steps`.
        seed: of the positions.
        batch_size: examples a pass.

    Returns:
        What `fit_vocabulary` gives, of each head. Nothing where there are no heads, `candidates` is 0, or the base
        cannot read candidates side by side.
    """
    if not heads or not candidates or not model.family.branches:
        return []
    followed, likely = read_steps(model, examples, candidates, positions, seed, batch_size)
    unembedding = weight_of(model.base_model.get_output_embeddings())
    return [
        fit_vocabulary(head, unembedding, followed.of(number), likely.of(number), FitConfig(seed=seed))
        for number, head in enumerate(heads)
    ]


def measure_spread(model: OtterModel, examples: Sequence[Example]) -> None:
    """Stores the mean and the spread of the scores of the base's own responses in the signal's configuration."""
    scores = torch.tensor([score for example in examples for score in example.scores])
    if len(scores) > 1 and float(scores.std()) > 0:
        _set(model, mean=float(scores.mean()), spread=float(scores.std()))


def _set(model: OtterModel, **values: float) -> None:
    adapter = model.adapter()
    adapter.config = replace(adapter.config, signal=replace(adapter.config.signal, **values))


def at_most(examples: Sequence[Example], tokens: int, seed: int) -> list[Example]:
    """Chooses random examples whose responses have no more than so many tokens together, one at least."""
    chosen: list[Example] = []
    for index in random.Random(seed).sample(range(len(examples)), len(examples)):
        example = examples[index]
        tokens -= sum(map(len, example.responses))
        if tokens < 0 and chosen:
            break
        chosen.append(example)
    return chosen


def save_reward(
    model: OtterModel,
    run: Run,
    data: str,
    counts: tuple[int, int],
    metrics: dict[str, float],
    settings: dict[str, Any],
    sources: Sequence[object] = (),
) -> None:
    """Saves a trained reward with its card.

    Args:
        model: the base with the adapter.
        run: whose folder.
        data: what the examples are called on the card.
        counts: rows trained on, and held out.
        metrics: on the rows held out.
        settings: what else the card should list.
        sources: of the data, see `Run.save`.
    """
    data_used = f"Trained on {counts[0]} rows of `{data}`, {counts[1]} held out."
    if model.adapter().head.vocabulary is not None and not model.family.branches:
        data_used += " The vocabulary head was not fitted to candidates, which this base cannot read side by side."
    run.save(model, "A reward", data_used, metrics, settings, sources)

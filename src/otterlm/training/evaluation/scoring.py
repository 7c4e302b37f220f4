"""Computes the rewards of packed examples, their accuracy on pairs, and their correlation with scores."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from otterlm.decoding.ends import unread_ends
from otterlm.model import OtterModel
from otterlm.progress import track
from otterlm.signals.base import Capability
from otterlm.training.data.packing import Example, bucket_count, collate, length_buckets
from otterlm.training.sources import LiveBase, read_batch


@dataclass(frozen=True, slots=True)
class Scored:
    """A scored example has the rewards after every token of each of its responses."""

    example: Example
    rewards: tuple[list[float], ...]


def score_examples(
    model: OtterModel, examples: Sequence[Example], batch_size: int = 8, adapter_name: str | None = None
) -> list[Scored]:
    """Scores examples, in their order; a pair's shared prefix is computed once."""
    return sorted(_scored(model, examples, batch_size, adapter_name), key=lambda row: row.example.row)


def score_ends(
    model: OtterModel, examples: Sequence[Example], batch_size: int = 8, adapter_name: str | None = None
) -> list[Scored]:
    """Scores examples, and holds only what `summarize` reads: the rewards of whole responses, without their tokens."""
    ends = []
    for each in _scored(model, examples, batch_size, adapter_name):
        example = Example(each.example.row, (), ((),) * len(each.rewards), each.example.scores)
        ends.append(Scored(example, tuple([values[-1]] for values in each.rewards)))
    return sorted(ends, key=lambda row: row.example.row)


def _scored(
    model: OtterModel, examples: Sequence[Example], batch_size: int, adapter_name: str | None
) -> Iterator[Scored]:
    name = model.adapter_name(adapter_name, Capability.PREFIX)
    source, ends = LiveBase(model), unread_ends(model, name)
    for group in track(length_buckets(examples, batch_size), "scoring", bucket_count(examples, batch_size)):
        batch = collate(group).to(model.device)
        with torch.no_grad():
            rewards = read_batch(model, source, batch, name).prefix.cpu()
        for row, example in enumerate(group):
            shared = rewards[row, : len(example.prefix)].tolist()
            branches, begin = [], len(example.prefix)
            for branch, start in zip(example.branches, example.starts, strict=True):
                whole = shared + rewards[row, begin : begin + len(branch)].tolist()
                if branch and branch[-1] in ends and len(whole) > 1:
                    whole[-1] = whole[-2]
                branches.append(whole[start:])
                begin += len(branch)
            yield Scored(example, tuple(branches))


def summarize(scored: Sequence[Scored]) -> dict[str, Any]:
    """Summarises rewards.

    Returns:
        For pairs: `accuracy` (a tie counts half), `accuracy_ci95` and `n`. For scored texts: `mean_reward`,
        `correlation` and `n`. For both kinds: the two of them, as `pairs` and `texts`.
    """
    pairs = [row for row in scored if row.example.is_pair]
    texts = [row for row in scored if not row.example.is_pair]
    if pairs and texts:
        return {"pairs": summarize(pairs), "texts": summarize(texts)}
    if pairs:
        margins = [chosen[-1] - rejected[-1] for chosen, rejected in (row.rewards for row in pairs)]
        accuracy = sum((margin > 0) + (margin == 0) / 2 for margin in margins) / len(margins)
        return {"accuracy": accuracy, "accuracy_ci95": list(wilson_interval(accuracy, len(margins))), "n": len(margins)}
    rewards = torch.tensor([values[-1] for row in texts for values in row.rewards])
    scores = torch.tensor([score for row in texts for score in row.example.scores])
    correlation = float(torch.corrcoef(torch.stack((rewards, scores)))[0, 1]) if len(rewards) > 1 else math.nan
    return {"mean_reward": float(rewards.mean()), "correlation": correlation, "n": len(rewards)}


def correlations(scored: Sequence[Scored], percents: Sequence[int] = (25, 50, 75, 100)) -> dict[str, float]:
    """Correlates the reward part of the way through a response with its final score.

    `correlation_P` is Pearson's, after P percent of the tokens; 0 where one of the two does not vary.
    """
    scores = torch.tensor([score for row in scored for score in row.example.scores])
    texts = [values for row in scored for values in row.rewards]
    table = {}
    for percent in percents:
        rewards = torch.tensor([values[index_at(len(values), percent)] for values in texts])
        varies = len(texts) > 1 and float(rewards.std()) > 0 and float(scores.std()) > 0
        table[f"correlation_{percent}"] = float(torch.corrcoef(torch.stack((rewards, scores)))[0, 1]) if varies else 0.0
    return table


def index_at(length: int, percent: int) -> int:
    """Returns the index of the token that ends the first P percent of a text, one token at least; 100 is the last."""
    return max(1, length * percent // 100) - 1


def wilson_interval(share: float, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Returns the Wilson score interval of a proportion (E. B. Wilson, 1927), 95% by default."""
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)

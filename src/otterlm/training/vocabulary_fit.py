"""Fits a vocabulary head to steps, see `otterlm.training.vocabulary_head`, by least squares."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from otterlm.progress import track
from otterlm.signals.low_rank import LowRankHead
from otterlm.signals.two_towers import TwoTowerHead
from otterlm.training.vocabulary_head import Steps

PLAUSIBLE = 0.02
"""The least share of the likeliest candidate's probability that makes a candidate count."""


@dataclass(frozen=True, slots=True)
class FitConfig:
    """Says how a head is fitted: AdamW with linear decay.

    Attributes:
        epochs, batch_size, learning_rate, weight_decay: of the fit; a batch is so many positions of the text.
        dropout: of the states and of the head's middles. Without it the head learns the texts by heart.
        seed: of the order and of what is held out.
    """

    epochs: int = 8
    batch_size: int = 512
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    dropout: float = 0.2
    seed: int = 0


def fit_vocabulary(
    head: LowRankHead | TwoTowerHead,
    unembedding: Tensor,
    followed: Steps,
    candidates: Steps,
    config: FitConfig = FitConfig(),
) -> tuple[float, float]:
    """Fits a head to what tokens change in the reward, and leaves it in `head`.

    Args:
        head: of the adapter that the steps were read with.
        unembedding: the base's, `[V, d]`.
        followed: steps of the texts themselves.
        candidates: steps of the base's likeliest tokens; those of a tenth of the examples are held out.
        config: how.

    Returns:
        What `judge_scores` says of the held-out candidates. The explained share is what counts for choosing among them.
    """
    torch.manual_seed(config.seed)
    head.requires_grad_(True)
    # Batches are chosen at random, and a GPU would wait for each of them.
    followed, candidates = followed.to(unembedding.device), candidates.to(unembedding.device)
    held = _held_out(candidates.examples, config.seed)
    inputs = _Inputs(head, unembedding, followed, config.dropout)
    weight = plausible_shares(candidates.log_probs)[1]
    advantages = candidates.gains - (weight * candidates.gains).sum(dim=1, keepdim=True)
    single, several = (~torch.isin(followed.examples, held)).nonzero()[:, 0], _rows(candidates, held, False)
    batches = -(-len(single) // config.batch_size)
    optimizer = torch.optim.AdamW(head.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, total_iters=config.epochs * batches)
    share = -(-len(several) // batches)
    with torch.enable_grad():
        for _ in track(range(config.epochs), "fitting the vocabulary head"):
            first, second = single[torch.randperm(len(single))], several[torch.randperm(len(several))]
            for number in range(batches):
                rows = first[number * config.batch_size : (number + 1) * config.batch_size]
                loss = F.mse_loss(inputs.scores(followed, rows), followed.gains[rows])
                rows = second[number * share : (number + 1) * share]
                if len(rows):
                    loss = loss + F.mse_loss(inputs.scores(candidates, rows), advantages[rows])
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                schedule.step()
    rows = _rows(candidates, held, True)
    with torch.no_grad():
        scores = inputs.scores(candidates, rows, fitting=False)
    inputs.restore()
    return judge_scores(scores, candidates.gains[rows], candidates.log_probs[rows])


class _Inputs:
    """What a head reads while it is fitted: a head with biases reads standardised states and embeddings, and is made
    one of the plain ones at the end."""

    def __init__(self, head: LowRankHead | TwoTowerHead, unembedding: Tensor, steps: Steps, dropout: float) -> None:
        self._head, self._unembedding, self._dropout = head, unembedding, dropout
        self._standard = isinstance(head, TwoTowerHead)
        self._mean, self._deviation, self._scale = torch.tensor(0.0), torch.tensor(1.0), 1.0
        if self._standard:
            self._mean, self._deviation = _moments(steps.states)
            self._scale = float(unembedding.float().square().mean().sqrt())
            head.initialize()

    def scores(self, steps: Steps, rows: Tensor, fitting: bool = True) -> Tensor:
        """Returns the scores of the tokens of some steps, `[n, k]`."""
        states = (steps.states[rows].float() - self._mean) / self._deviation
        embeddings = self._unembedding[steps.tokens[rows]] / self._scale
        if isinstance(self._head, TwoTowerHead):
            return self._head.of_embeddings(states[:, None], embeddings, self._dropout if fitting else 0.0)
        return self._head.of_embeddings(states[:, None], embeddings)

    def restore(self) -> None:
        """Makes the head one that reads plain states and embeddings."""
        if isinstance(self._head, TwoTowerHead):
            self._head.standardize(self._mean, self._deviation, self._scale)


def _moments(states: Tensor, at_once: int = 1 << 14) -> tuple[Tensor, Tensor]:
    """Returns the mean and the deviation of states `[n, d]`, which may be more than memory holds as float32."""
    mean = torch.stack([part.sum(dim=0, dtype=torch.float64) for part in states.split(at_once)]).sum(dim=0) / len(
        states
    )
    squares = torch.stack([(part.double() - mean).square().sum(dim=0) for part in states.split(at_once)]).sum(dim=0)
    return mean.float(), (squares / max(1, len(states) - 1)).sqrt().float() + 1e-3


def _held_out(examples: Tensor, seed: int) -> Tensor:
    """Chooses a tenth of the examples' numbers."""
    numbers = examples.unique()
    order = torch.randperm(len(numbers), generator=torch.Generator().manual_seed(seed))
    return numbers[order[: max(1, len(numbers) // 10)]]


def _rows(steps: Steps, held: Tensor, inside: bool) -> Tensor:
    return (torch.isin(steps.examples, held) == inside).nonzero()[:, 0]


def plausible_shares(log_probs: Tensor) -> tuple[Tensor, Tensor]:
    """Marks plausible candidates, `[n, k]` bool, and gives their probabilities among themselves.

    Args:
        log_probs: `[n, k]`, up to a constant of each row; the likeliest first.
    """
    mask = log_probs >= log_probs[:, :1] + math.log(PLAUSIBLE)
    return mask, log_probs.masked_fill(~mask, -torch.inf).softmax(dim=1)


def judge_scores(scores: Tensor, gains: Tensor, log_probs: Tensor) -> tuple[float, float]:
    """Judges what a head says of candidates, `[n, k]` each.

    Args:
        scores: of the head.
        gains, log_probs: of the candidates, see `otterlm.training.vocabulary_head.Steps`.

    Returns:
        Of the plausible ones: the share of the variance of their gains, around each position's mean, that the scores
        explain; and the standard deviation of the scores, weighted by the base's probabilities.
    """
    mask, weight = plausible_shares(log_probs)
    return _explained(gains, scores, mask), _spread(scores, weight)


def _explained(gains: Tensor, scores: Tensor, mask: Tensor) -> float:
    count = mask.sum(dim=1, keepdim=True)
    gains, scores = ((values - (values * mask).sum(dim=1, keepdim=True) / count) * mask for values in (gains, scores))
    left, whole = (((values / count.sqrt()) ** 2).sum() for values in (gains - scores, gains))
    return float(1 - left / whole.clamp_min(1e-12))


def _spread(scores: Tensor, weight: Tensor) -> float:
    scores = scores - (weight * scores).sum(dim=1, keepdim=True)
    return float((weight * scores.square()).sum(dim=1).mean().sqrt())

"""Computes losses over packed batches. `rewards` is always `[B, T]`, one prefix reward per token of the packed
sequence."""

import torch
import torch.nn.functional as F
from torch import Tensor

from otterlm.training.data.packing import CHOSEN, REJECTED, Batch


def branch_rewards(rewards: Tensor, segments: Tensor, segment: int) -> tuple[Tensor, Tensor]:
    """Returns the rewards of one branch, left-aligned.

    Args:
        rewards: `[B, T]`.
        segments: `[B, T]`, see `otterlm.masks.branch_mask`.
        segment: which branch.

    Returns:
        `[B, N]`, N the longest branch, a shorter one going on with its last reward; and the lengths, `[B]`.
    """
    inside = segments == segment
    lengths = inside.sum(dim=1)
    start = inside.int().argmax(dim=1)
    offsets = torch.arange(int(lengths.max()), device=rewards.device)
    index = start[:, None] + torch.minimum(offsets[None], lengths[:, None] - 1)
    return rewards.gather(1, index), lengths


def final_rewards(rewards: Tensor, segments: Tensor, segment: int) -> Tensor:
    """Returns the reward at the last token of a branch, `[B]`."""
    return branch_rewards(rewards, segments, segment)[0][:, -1]


def bradley_terry(rewards: Tensor, batch: Batch, prefixes: bool) -> Tensor:
    """Computes -log sigmoid(reward of chosen - reward of rejected) (Bradley and Terry, 1952).

    Args:
        rewards: `[B, T]`.
        batch: packed pairs.
        prefixes: compare the two responses after every token, not only whole (PARGS, arXiv 2406.07780): the mean over
            all prefixes of the same length, a response that has ended standing at its end, and the whole responses
            weigh the same.

    Returns:
        A scalar, the mean over the pairs.
    """
    chosen, chosen_lengths = branch_rewards(rewards, batch.segments, CHOSEN)
    rejected, rejected_lengths = branch_rewards(rewards, batch.segments, REJECTED)
    whole = -F.logsigmoid(chosen[:, -1] - rejected[:, -1])
    if not prefixes:
        return whole.mean()
    longest = max(chosen.shape[1], rejected.shape[1])
    chosen, rejected = (_extend(values, longest) for values in (chosen, rejected))
    lengths = torch.maximum(chosen_lengths, rejected_lengths)
    inside = torch.arange(longest, device=rewards.device)[None] < lengths[:, None]
    by_prefix = (-F.logsigmoid(chosen - rejected) * inside).sum(dim=1) / lengths
    return ((by_prefix + whole) / 2).mean()


def _extend(values: Tensor, length: int) -> Tensor:
    return torch.cat((values, values[:, -1:].expand(-1, length - values.shape[1])), dim=1)


def preference_accuracy(rewards: Tensor, batch: Batch) -> Tensor:
    """Computes the fraction of pairs whose whole chosen response has the higher reward; a tie counts half."""
    margin = final_rewards(rewards, batch.segments, CHOSEN) - final_rewards(rewards, batch.segments, REJECTED)
    return ((margin > 0).float() + (margin == 0).float() / 2).mean()


def regression(rewards: Tensor, batch: Batch, prefixes: bool, trace: float = 1.0) -> Tensor:
    """Computes the squared error to the scores: at the last token, or the mean over all prefixes of the response.

    Args:
        rewards: `[B, T]`.
        batch: packed scored texts, some number of them behind each prefix.
        prefixes: whether every prefix counts.
        trace: lambda of TD(lambda) (Sutton, 1988), for prefixes: 1 is the score itself at every prefix, 0 the reward
            that is predicted one token later, between them the lambda-return.
    """
    errors = []
    for branch, scores in enumerate(batch.scores.unbind(dim=1), start=CHOSEN):
        rows = (~scores.isnan()).nonzero()[:, 0]  # [n], those that have so many branches
        values, lengths = branch_rewards(rewards[rows], batch.segments[rows], branch)
        errors.append(_errors(values, lengths, scores[rows], prefixes, trace))
    return torch.cat(errors).mean()


def _errors(values: Tensor, lengths: Tensor, scores: Tensor, prefixes: bool, trace: float) -> Tensor:
    """Computes the squared error of each text, `[n]`."""
    if not prefixes:
        return (values[:, -1] - scores) ** 2
    inside = torch.arange(values.shape[1], device=values.device)[None] < lengths[:, None]
    targets = lambda_returns(values.detach(), lengths, scores, trace)
    return ((values - targets) ** 2 * inside).sum(dim=1) / lengths


def lambda_returns(values: Tensor, lengths: Tensor, scores: Tensor, trace: float) -> Tensor:
    """Returns what TD(lambda) has each prefix predict, of texts that are scored at their end.

    Args:
        values: `[B, N]`, predicted.
        lengths: `[B]`, of the texts.
        scores: `[B]`.
        trace: lambda.

    Returns:
        `[B, N]`: the score at the last token and after it, before it (1 - lambda) * next value + lambda * next return.
    """
    if trace == 1:
        return scores[:, None].expand_as(values)
    returns = [scores]
    for position in range(values.shape[1] - 2, -1, -1):
        step = (1 - trace) * values[:, position + 1] + trace * returns[-1]
        returns.append(torch.where(position < lengths - 1, step, scores))
    return torch.stack(returns[::-1], dim=1)

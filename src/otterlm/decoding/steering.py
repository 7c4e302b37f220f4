"""Does to tensors what steering and stopping need: pure functions, the same for `generate` and for engines.

A row is one text: scores are of its next token, `[B, V]`, and weights and counts are numbers or tensors that broadcast.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

FEW = 4096
"""How many of the likeliest tokens are tried first for a nucleus."""
MANY = 64
"""If more tokens of a row are plausible, the rewards of all are computed."""

CHUNK = 64
"""Plausible tokens are looked for in so many at once."""

Count = TypeVar("Count", int, Tensor)


def guide(
    scores: Tensor,
    rewards: Callable[[Tensor | None], Tensor],
    weight: float | Tensor,
    top_k: int | None = None,
    min_p: float | Tensor = 0.0,
) -> Tensor:
    """Adds the weighted reward of every plausible next token to its score.

    Args:
        scores: `[B, V]`.
        rewards: gives those of some tokens of each row, `[B, k]` ids to `[B, k]`, and with None those of all, `[B, V]`.
        weight: of the reward; a tensor is `[B, 1]`.
        top_k: only the k tokens with the highest scores stay possible (ARGS, arXiv 2402.01694); None: all.
        min_p: only tokens with at least this share of the likeliest one's probability stay possible (arXiv 2407.01082);
            0: all. A tensor is `[B, 1]`.

    Returns:
        `[B, V]`, minus infinity at the tokens that are ruled out.
    """
    everything = isinstance(min_p, float) and min_p == 0
    if top_k is not None and top_k < scores.shape[-1]:
        best, tokens = scores.topk(top_k, dim=-1)  # [B, k]
        guided = _of_tokens(scores, tokens, best + weight * rewards(tokens).to(scores))
    elif not everything and (few := _few_plausible(scores, min_p)) is not None:
        return _of_tokens(scores, few, scores.gather(-1, few) + weight * rewards(few).to(scores))
    else:
        guided = (weight * rewards(None).to(scores)).add_(scores)
    return guided if everything else guided.masked_fill_(~plausible(scores, min_p), -torch.inf)


def _of_tokens(scores: Tensor, tokens: Tensor, values: Tensor) -> Tensor:
    """Returns scores of some tokens, `[B, k]`, among all, `[B, V]`: minus infinity at the others."""
    return torch.full_like(scores, -torch.inf).scatter_(-1, tokens, values)


def _few_plausible(scores: Tensor, min_p: float | Tensor) -> Tensor | None:
    """Finds the plausible tokens of each row, `[B, k]`; a row with fewer than k repeats its first.

    Rewards of all tokens take longer. None where they are many, and on devices that would have to be waited for.
    """
    if scores.device.type != "cpu":
        return None
    batch, vocabulary = scores.shape
    whole = vocabulary // CHUNK * CHUNK
    # Most tokens are far from plausible, and so is the best of most chunks: one look at each score finds these.
    best = scores[:, :whole].unflatten(-1, (-1, CHUNK)).amax(dim=-1)  # [B, chunks]
    if whole < vocabulary:
        best = torch.cat((best, scores[:, whole:].amax(dim=-1, keepdim=True)), dim=-1)
    least = best.amax(dim=-1, keepdim=True) + log_share(min_p, scores)  # [B, 1]
    rows, chunks = (best >= least).nonzero(as_tuple=True)
    if len(rows) > MANY * batch:  # each has a plausible token
        return None
    ids = chunks[:, None] * CHUNK + torch.arange(CHUNK)  # [n, CHUNK]
    enough = (scores[rows[:, None], ids.clamp(max=vocabulary - 1)] >= least[rows]) & (ids < vocabulary)
    rows, tokens = rows[:, None].expand_as(ids)[enough], ids[enough]
    counts = rows.bincount(minlength=batch)
    if not 0 < int(counts.min()) <= int(counts.max()) <= MANY:
        return None
    starts = counts.cumsum(0) - counts
    few = tokens[starts, None].repeat(1, int(counts.max()))
    few[rows, torch.arange(len(rows)) - starts[rows]] = tokens
    return few


def plausible(scores: Tensor, min_p: float | Tensor) -> Tensor:
    """Marks the tokens with at least this share of the likeliest token's probability, `[B, V]` bool."""
    return scores >= scores.amax(dim=-1, keepdim=True) + log_share(min_p, scores)


def log_share(share: float | Tensor, scores: Tensor) -> Tensor:
    """Returns the logarithm of a share, as scores are compared with it: in their dtype."""
    return torch.as_tensor(share, dtype=scores.dtype, device=scores.device).log()


def contrast(scores: Tensor, difference: Tensor, alpha: float | Tensor, top_p: float) -> Tensor:
    """Computes scores + alpha * difference inside the nucleus of the scores, and minus infinity outside (DExperts,
    arXiv 2105.03023); all `[B, V]`, alpha may be `[B, 1]`."""
    return (scores + alpha * difference).masked_fill(~nucleus(scores, top_p), -torch.inf)


def nucleus(scores: Tensor, top_p: float) -> Tensor:
    """Finds the smallest set of likeliest tokens with at least this probability (arXiv 1904.09751), `[B, V]` bool."""
    inside = torch.zeros_like(scores, dtype=torch.bool)
    if top_p == 1:
        return ~inside
    probability = scores.softmax(dim=-1)
    # A few tokens mostly hold it; sorting them all takes longer than the pass that made them.
    for size in (min(FEW, scores.shape[-1]), scores.shape[-1]):
        likeliest, tokens = probability.topk(size, dim=-1)
        before = likeliest.cumsum(dim=-1) - likeliest  # the mass of the likelier ones
        if bool((before[:, -1] >= top_p).all()):
            break
    return inside.scatter(-1, tokens, before < top_p)


def count_under(count: Count, value: float | Tensor, threshold: float) -> Count:
    """Counts for how many tokens in a row a reward has been under a threshold: one more, or none again.

    Args:
        count: so far, a number or `[B]` integers.
        value: the reward after the latest token, a number or `[B]`.
        threshold: a reward equal to it is not under it.
    """
    under: Any = value < threshold
    return (count + 1) * under

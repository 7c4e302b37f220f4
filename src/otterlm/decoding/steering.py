"""Does to tensors what steering and stopping need: pure functions, the same for `generate` and for engines.

A row is one text: scores are of its next token, `[B, V]`, and weights and counts are numbers or tensors that broadcast.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

FEW = 4096
"""How many of the likeliest tokens are tried first for a nucleus."""

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
    guided = _guided(scores, rewards, weight, top_k)
    return (
        guided
        if isinstance(min_p, float) and min_p == 0
        else guided.masked_fill_(~plausible(scores, min_p), -torch.inf)
    )


def _guided(
    scores: Tensor, rewards: Callable[[Tensor | None], Tensor], weight: float | Tensor, top_k: int | None
) -> Tensor:
    if top_k is None or top_k >= scores.shape[-1]:
        return (weight * rewards(None).to(scores)).add_(scores)
    best, tokens = scores.topk(top_k, dim=-1)  # [B, k]
    guided = best + weight * rewards(tokens).to(scores)
    return torch.full_like(scores, -torch.inf).scatter(-1, tokens, guided)


def plausible(scores: Tensor, min_p: float | Tensor) -> Tensor:
    """Marks the tokens with at least this share of the likeliest token's probability, `[B, V]` bool."""
    share = torch.as_tensor(min_p, dtype=scores.dtype, device=scores.device)
    return scores >= scores.amax(dim=-1, keepdim=True) + share.log()


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

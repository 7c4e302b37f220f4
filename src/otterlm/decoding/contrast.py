"""Contrast (DExperts, arXiv 2105.03023): logits + alpha * (expert - anti-expert), from the pass that is made anyway."""

import torch
from torch import Tensor

from otterlm.decoding.checks import check_share, check_weight
from otterlm.generation import SignalProcessor
from otterlm.model import OtterModel
from otterlm.signals.base import Capability
from otterlm.signals.contrast.head import ContrastSignal

FEW = 4096
"""How many of the likeliest tokens are tried first for a nucleus."""


class ContrastGuidance(SignalProcessor):
    """Moves the logits towards the expert and away from the anti-expert. Works with greedy decoding, sampling,
    beams and assistants, in batches.

    Args:
        model: the model that generates.
        alpha: how far; 0 leaves the scores untouched.
        top_p: only the base's likeliest tokens that together have this probability stay possible, as in DExperts: it
            keeps the text the base's own.
        adapter_name: whose contrast; may be left out where there is one.

    Raises:
        OtterError: a setting is out of range, or (when called) the scores are not of this model's latest pass.
    """

    def __init__(self, model: OtterModel, alpha: float, top_p: float = 0.9, adapter_name: str | None = None) -> None:
        super().__init__(model, adapter_name, Capability.REPLACES)
        self.alpha = check_weight(alpha)
        self.top_p = check_share("top_p", top_p)
        self.off = self.alpha == 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """`[B, T]` tokens so far and `[B, V]` scores of the next to `[B, V]`."""
        signal: ContrastSignal | None = None if self.off else self.signal(input_ids, scores)
        if signal is None:
            return scores
        return contrast(scores, signal.difference().to(scores), self.alpha, self.top_p)


def contrast(scores: Tensor, difference: Tensor, alpha: float | Tensor, top_p: float) -> Tensor:
    """Scores + alpha * difference inside the nucleus of the scores, minus infinity outside; all `[B, V]`, alpha may be
    `[B, 1]`."""
    return (scores + alpha * difference).masked_fill(~nucleus(scores, top_p), -torch.inf)


def nucleus(scores: Tensor, top_p: float) -> Tensor:
    """The smallest set of likeliest tokens with at least this probability (arXiv 1904.09751), `[B, V]` bool."""
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

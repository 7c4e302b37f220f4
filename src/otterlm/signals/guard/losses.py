"""Computes losses of labels over prefixes. A target that is NaN is not known, and teaches nothing."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Weights:
    """Holds how much the two sides of each label count.

    Attributes:
        positive, negative: `[L]` float32, of the texts (or tokens) with and without the label. Where labels exclude
            each other, only `positive` is used.
    """

    positive: Tensor
    negative: Tensor


def class_weights(positive: Tensor, negative: Tensor, balance: float, exclusive: bool) -> Weights:
    """Returns weights by which rare sides count more.

    Args:
        positive, negative: `[L]`, how many texts (or tokens) have each label, and how many have not.
        balance: 0: every text counts the same; 1: both sides of a label (or all exclusive labels) count the same.
        exclusive: whether a text has exactly one of the labels.
    """

    def weight(counts: Tensor, share: Tensor) -> Tensor:
        return torch.where(counts > 0, (share / counts.clamp_min(1)) ** balance, torch.ones_like(counts))

    positive, negative = positive.float(), negative.float()
    if exclusive:
        return Weights(weight(positive, positive.mean()), torch.ones_like(positive))
    half = (positive + negative) / 2
    return Weights(weight(positive, half), weight(negative, half))


def span_loss(logits: Tensor, targets: Tensor, weights: Weights) -> Tensor:
    """Returns the cross-entropy of passages, a mean over the k + 1 outputs of each position.

    Args:
        logits: `[B, T, 1 + k, S]` float32, see `otterlm.signals.guard.head.GuardSignal.span_logits`.
        targets: `[B, T, S]`, of tokens, 0, 1 or NaN; NaN at padding.
        weights: of the labels.

    Returns:
        A scalar.
    """
    inside = ~targets.isnan().all(dim=-1, keepdim=True)
    losses = []
    for delay in range(logits.shape[2]):
        late = F.pad(targets, (0, 0, delay, 0), value=torch.nan)[:, : targets.shape[1]]
        # What is read at padding is of no text.
        losses.append(label_loss(logits[:, :, delay], late.masked_fill(~inside, torch.nan), weights, False))
    return torch.stack(losses).mean()


def label_loss(logits: Tensor, targets: Tensor, weights: Weights, exclusive: bool) -> Tensor:
    """Returns the cross-entropy of the labels, a mean over the known prefixes of a text, then over the texts.

    A text that teaches nothing counts as 0, so that the mean over batches is the mean over the data.

    Args:
        logits: `[B, T, L]` float32.
        targets: `[B, T, L]`, from 0 to 1, or NaN.
        weights: of the labels.
        exclusive: softmax over the labels instead of a sigmoid each.

    Returns:
        A scalar.
    """
    known = ~targets.isnan()
    wanted = targets.nan_to_num()
    if exclusive:
        loss = -(weights.positive.to(logits) * wanted * logits.log_softmax(dim=-1)).sum(dim=-1, keepdim=True)
        known = known.all(dim=-1, keepdim=True)
    else:
        weight = wanted * weights.positive.to(logits) + (1 - wanted) * weights.negative.to(logits)
        loss = weight * F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    by_text = (loss * known).sum(dim=(1, 2)) / known.sum(dim=(1, 2)).clamp_min(1)
    return by_text.mean()

"""Fits a linear probe on the base's last hidden state: the strongest cheap rival, and the reward head's start."""

import torch
import torch.nn.functional as F
from torch import Tensor

PENALTIES = (1e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)


def fit_probe(chosen: Tensor, rejected: Tensor, folds: int = 5, seed: int = 0) -> Tensor:
    """Fits a logistic regression on differences of hidden states, with an L2 penalty chosen by cross-validation.

    Args:
        chosen, rejected: `[N, d]` float, the states at the last token of the better and the worse text.
        folds: of the cross-validation.
        seed: of the folds.

    Returns:
        `[d]`: `weight . state` is a Bradley-Terry reward.
    """
    difference = chosen - rejected
    spread = difference.std(dim=0, correction=0)
    scale = torch.where(spread > 1e-6, spread, 1.0)
    scaled = difference / scale
    fold = torch.randperm(len(scaled), generator=torch.Generator().manual_seed(seed)) % folds

    def held_out_loss(penalty: float) -> float:
        total = 0.0
        for held in range(folds):
            weight = _logistic(scaled[fold != held], penalty)
            total += float(-F.logsigmoid(scaled[fold == held] @ weight).sum())
        return total

    best = min(PENALTIES, key=held_out_loss) if len(scaled) >= 2 * folds else PENALTIES[-1]
    return _logistic(scaled, best) / scale


def _logistic(difference: Tensor, penalty: float) -> Tensor:
    """Returns the minimum of mean(-log sigmoid(w . x)) + penalty / 2 * |w|^2, by L-BFGS."""
    weight = torch.zeros(difference.shape[1], dtype=difference.dtype, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = -F.logsigmoid(difference @ weight).mean() + penalty / 2 * weight.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    return weight.detach()

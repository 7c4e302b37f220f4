"""Fits linear probes on the base's hidden states: the strongest cheap rivals, and the reward head's start."""

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
    scale = _spread(difference)
    scaled = difference / scale
    return _cross_validated(scaled, folds, seed) / scale


def fit_classifier(
    states: Tensor, truth: Tensor, penalty: float | None = None, folds: int = 5, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Fits a logistic regression on hidden states.

    Args:
        states: `[N, d]` float.
        truth: `[N]` bool.
        penalty: of L2; None: chosen by cross-validation.
        folds, seed: of the cross-validation.

    Returns:
        The weight, `[d]`, and the bias, a scalar: `weight . state + bias` is the logit of being true.
    """
    mean, scale = states.mean(dim=0), _spread(states)
    scaled = torch.cat(((states - mean) / scale, torch.ones_like(states[:, :1])), dim=1)
    signed = scaled * torch.where(truth, 1.0, -1.0).to(states)[:, None]  # so that a positive logit is right
    fitted = _cross_validated(signed, folds, seed) if penalty is None else _logistic(signed, penalty)
    weight = fitted[:-1] / scale
    return weight, fitted[-1] - weight @ mean


def _spread(states: Tensor) -> Tensor:
    spread = states.std(dim=0, correction=0)
    return torch.where(spread > 1e-6, spread, 1.0)


def _cross_validated(scaled: Tensor, folds: int, seed: int) -> Tensor:
    """Returns the weight with the penalty that is best on parts held out."""
    fold = torch.randperm(len(scaled), generator=torch.Generator().manual_seed(seed)) % folds

    def held_out_loss(penalty: float) -> float:
        total = 0.0
        for held in range(folds):
            weight = _logistic(scaled[fold != held], penalty)
            total += float(-F.logsigmoid(scaled[fold == held] @ weight).sum())
        return total

    best = min(PENALTIES, key=held_out_loss) if len(scaled) >= 2 * folds else PENALTIES[-1]
    return _logistic(scaled, best)


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

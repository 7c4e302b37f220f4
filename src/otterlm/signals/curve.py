"""Reads calibration curves over tensors."""

from collections.abc import Sequence

import torch
from torch import Tensor


def on_curve(curve: Sequence[tuple[float, float]], values: Tensor) -> Tensor:
    """Returns the heights of a rising curve at some values; outside the curve its first or last height.

    Args:
        curve: points (value, height), both rising; between them the line.
        values: of any shape, float.
    """
    x, y = values.new_tensor(curve).T.contiguous()  # [n] each
    right = torch.searchsorted(x, values.contiguous()).clamp(1, max(1, len(x) - 1)).clamp_max(len(x) - 1)
    left = (right - 1).clamp_min(0)
    share = ((values - x[left]) / (x[right] - x[left]).clamp_min(1e-12)).clamp(0, 1)
    return y[left] + share * (y[right] - y[left])

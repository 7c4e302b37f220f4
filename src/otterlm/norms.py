"""Normalises what is inserted: the channels of h' by the statistics of the base's h, and those of each extra head."""

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from otterlm.families.parts import norm_eps


class InsertedNorm(nn.Module):
    """The norm is x' = h' / RMS(h) * w', or (h' - mean(h)) / std(h) * w' + b'.

    The statistics come from the base's state alone. Otherwise the base would have to change.

    Args:
        inserted: channels.
        eps: is added to the mean square, or the variance.
        centred: whether the mean is taken away.
        biased: whether there is a b'.
        dtype, device: of the parameters.
    """

    def __init__(self, inserted: int, eps: float, centred: bool = False, biased: bool = False, **factory: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(inserted, **factory))
        self.bias = nn.Parameter(torch.empty(inserted, **factory)) if biased else None
        # A tensor, because a number is made into one by every operation, which takes longer than the operation.
        self.eps: Tensor
        self._eps = eps
        self.register_buffer(
            "eps", torch.tensor(eps, dtype=torch.float32, device=factory.get("device")), persistent=False
        )
        self.centred = centred

    @classmethod
    def like(cls, inserted: int, norm: nn.Module, centred: bool, **factory: Any) -> Self:
        """Makes a norm as one of the base."""
        biased = getattr(norm, "bias", None) is not None
        return cls(inserted, norm_eps(norm), centred, biased, **factory)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Moves epsilon with the rest, but keeps its precision (1e-6 is not a number of float16).

        It also keeps its value where memory is only allocated, as by `to_empty`.
        """
        super()._apply(fn, recurse)
        self.eps = torch.tensor(self._eps, dtype=torch.float32, device=self.eps.device)
        return self

    def forward(self, inserted: Tensor, hidden: Tensor) -> Tensor:
        """Maps `[B, T, d']` and the base's `[B, T, d]` to `[B, T, d']`."""
        precision = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        if self.centred:
            variance, mean = torch.var_mean(hidden.to(precision), dim=-1, correction=0, keepdim=True)  # [B, T, 1]
            inserted = inserted - mean.to(inserted.dtype)
            shifted = variance + self.eps
        else:
            norm = torch.linalg.vector_norm(hidden, dim=-1, keepdim=True, dtype=precision)
            shifted = torch.addcmul(self.eps, norm, norm, value=1 / hidden.shape[-1])
        scale = torch.rsqrt(shifted)
        scaled = inserted * scale.to(inserted.dtype) * self.weight
        return scaled if self.bias is None else scaled + self.bias


class HeadNorm(nn.Module):
    """Normalises each extra head's channels, for families that norm queries and keys."""

    def __init__(self, head_dim: int, eps: float, centred: bool, **factory: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(head_dim, **factory))
        self.eps = eps
        self.centred = centred

    def forward(self, heads: Tensor) -> Tensor:
        if self.centred:
            return nn.functional.layer_norm(heads, self.weight.shape, self.weight, None, self.eps)
        return nn.functional.rms_norm(heads, self.weight.shape, self.weight, self.eps)

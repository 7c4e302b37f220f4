"""Reads the uncertainty from the widened state."""

from typing import Any

from torch import Tensor, nn

from own_signal.config import UncertaintyConfig


class UncertaintyHead(nn.Module):
    """Maps the state linearly to a number that is never negative, as an entropy is not.

    Args:
        config: of the signal.
        width: d + d'.
        base_width: d.
        dtype, device: of the parameters.
    """

    def __init__(self, config: UncertaintyConfig, width: int, base_width: int, **factory: Any) -> None:
        super().__init__()
        self.entropy = nn.Linear(width, 1, **factory)

    def initialize(self) -> None:
        """Sets every prediction to softplus(0), 0.69 nats."""
        nn.init.zeros_(self.entropy.weight)
        nn.init.zeros_(self.entropy.bias)

    def forward(self, state: Tensor, unembedding: Tensor) -> "UncertaintySignal":
        """Maps `[B, T, d + d']` and the base's unembedding, `[V, d]`, to the signal."""
        return UncertaintySignal(self, state)


class UncertaintySignal:
    """The signal holds the uncertainty of one forward pass.

    Attributes:
        state: [h, h'] after the final norm, `[B, T, d + d']`.
    """

    def __init__(self, head: UncertaintyHead, state: Tensor) -> None:
        self.state = state
        self._head = head

    @property
    def prefix(self) -> Tensor:
        """Returns the entropy in nats that is expected some tokens after every prefix, `[B, T]` float32."""
        return nn.functional.softplus(self._head.entropy(self.state)).squeeze(-1).float()

    def beside(self, token: int, before: "UncertaintySignal") -> float:
        """Returns the uncertainty of the prefix that ends with the token."""
        return float(self.prefix[0, -1])

"""Predicts the next-token distributions of an expert and an anti-expert, as corrections of the base's logits.

DExperts (arXiv 2105.03023) runs two more language models for it. Here each is a low-rank map of the widened state, read
through the base's unembedding: expert logits = base logits + E . u+(s), and u- for the anti-expert.
"""

from typing import Any

from torch import Tensor, nn

from otterlm.signals.contrast.config import ContrastConfig
from otterlm.signals.low_rank import LowRankHead


class ContrastHead(nn.Module):
    """Reads both sides from the widened state.

    Args:
        config: of the signal.
        width: d + d'.
        base_width: d, the width of the unembedding's rows.
        dtype, device: of the parameters.
    """

    def __init__(self, config: ContrastConfig, width: int, base_width: int, **factory: Any) -> None:
        super().__init__()
        self.expert = LowRankHead(width, config.rank, base_width, **factory)
        self.anti_expert = LowRankHead(width, config.rank, base_width, **factory)

    def initialize(self) -> None:
        """Starts both sides as the base."""
        self.expert.initialize()
        self.anti_expert.initialize()

    def forward(self, state: Tensor, unembedding: Tensor) -> "ContrastSignal":
        """Maps `[B, T, d + d']` and the base's unembedding, `[V, d]`, to the signal."""
        return ContrastSignal(self, state, unembedding)


class ContrastSignal:
    """The signal holds both sides of one forward pass, and computes them when they are read.

    Attributes:
        state: [h, h'] after the final norm, `[B, T, d + d']`.
    """

    def __init__(self, head: ContrastHead, state: Tensor, unembedding: Tensor) -> None:
        self.state = state
        self._head = head
        self._unembedding = unembedding

    def beside(self, token: int, before: "ContrastSignal") -> float:
        """Returns the expert's logit of the token less the anti-expert's, in the pass that chose it."""
        return float(before.difference()[0, token])

    def expert(self, position: int = -1) -> Tensor:
        """Returns expert logits - base logits of the token after `position` of this pass, `[B, V]` float32."""
        return self._head.expert(self.state[:, position], self._unembedding)

    def anti_expert(self, position: int = -1) -> Tensor:
        """Returns anti-expert logits - base logits of the token after `position` of this pass, `[B, V]` float32."""
        return self._head.anti_expert(self.state[:, position], self._unembedding)

    def difference(self, position: int = -1) -> Tensor:
        """Returns expert logits - anti-expert logits of the token after `position` of this pass, `[B, V]` float32."""
        return self.expert(position) - self.anti_expert(position)

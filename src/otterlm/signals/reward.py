"""The reward signal: a scalar for every prefix, and a score for every token that could come next, in the same pass.

The vocabulary head predicts what the prefix head will say one token later (FaRMA, arXiv 2502.04517; RAD-Q, arXiv
2407.04615): score(v | s) = reward(s) + E[v] . u(s), where E is the base's own unembedding and u a low-rank map of the
state.
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from otterlm.config import RewardConfig
from otterlm.errors import OtterError


class RewardHead(nn.Module):
    """Reads rewards from the widened state.

    Args:
        config: of the signal.
        width: d + d'.
        base_width: d, the width of the unembedding's rows.
        dtype, device: of the parameters.
    """

    def __init__(self, config: RewardConfig, width: int, base_width: int, **factory: Any) -> None:
        super().__init__()
        self.prefix = nn.Linear(width, 1, **factory)
        self.down = self.up = None
        if config.vocabulary_rank:
            self.down = nn.Linear(width, config.vocabulary_rank, bias=False, **factory)
            self.up = nn.Linear(config.vocabulary_rank, base_width, bias=False, **factory)
        self._folded: tuple[tuple[tuple[int, int], ...], Tensor] | None = None

    def initialize(self) -> None:
        """Every reward starts at 0."""
        nn.init.zeros_(self.prefix.weight)
        nn.init.zeros_(self.prefix.bias)
        if self.down is not None and self.up is not None:
            self.down.reset_parameters()
            nn.init.zeros_(self.up.weight)

    def forward(self, state: Tensor, unembedding: Tensor) -> "RewardSignal":
        """`[B, T, d + d']` and the base's unembedding, `[V, d]`, to the rewards."""
        return RewardSignal(self, state, unembedding)

    def folded(self, unembedding: Tensor) -> Tensor:
        """E times the up projection, `[V, rank]`, so that scoring the whole vocabulary costs V x rank, not V x d."""
        assert self.up is not None
        version = tuple((weight.data_ptr(), weight._version) for weight in (self.up.weight, unembedding))
        if self._folded is None or self._folded[0] != version:
            self._folded = (version, F.linear(unembedding.to(self.up.weight.dtype), self.up.weight.T).detach())
        return self._folded[1]


class RewardSignal:
    """The rewards of one forward pass. Both heads are computed when asked for.

    Attributes:
        state: [h, h'] after the final norm, `[B, T, d + d']`.
    """

    def __init__(self, head: RewardHead, state: Tensor, unembedding: Tensor) -> None:
        self.state = state
        self._head = head
        self._unembedding = unembedding

    @property
    def prefix(self) -> Tensor:
        """The reward of every prefix that ends in this pass, `[B, T]` float32."""
        return self._head.prefix(self.state).squeeze(-1).float()

    def vocabulary(self, tokens: Tensor | None = None, position: int = -1) -> Tensor:
        """The expected reward after each next token.

        Args:
            tokens: `[B, k]` token ids to score; None: the whole vocabulary.
            position: index of the prefix's last token in this pass.

        Returns:
            `[B, k]` or `[B, V]`, float32.

        Raises:
            OtterError: the adapter was trained without a vocabulary head.
        """
        query = self.vocabulary_query(self.state[:, position])
        if tokens is None:
            gain = F.linear(query, self._head.folded(self._unembedding))
        else:
            gain = self.gain(query.unsqueeze(1), tokens)
        return self.prefix[:, position, None] + gain.float()

    def vocabulary_query(self, state: Tensor) -> Tensor:
        """The low-rank code a state asks the vocabulary with, `[..., rank]`."""
        if self._head.down is None:
            raise OtterError("this adapter has no vocabulary head (vocabulary_rank is 0): use search, or train one")
        return self._head.down(state)

    def gain(self, query: Tensor, tokens: Tensor) -> Tensor:
        """E[token] . u for a code and tokens of matching leading shape, `[..., k]`: how much a token changes the
        reward."""
        assert self._head.up is not None
        direction = self._head.up(query)  # [..., d]
        return (self._unembedding[tokens].to(direction.dtype) * direction).sum(dim=-1)

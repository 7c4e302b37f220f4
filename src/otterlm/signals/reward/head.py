"""The reward signal is a scalar for every prefix, and a score for every token that could come next, in the same pass.

The vocabulary head predicts what the prefix head will say one token later (FaRMA, arXiv 2502.04517; RAD-Q, arXiv
2407.04615): score(v | s) = reward(s) + f(E[v]) . g(s), where E is the base's own unembedding, s the state, and f and g
are small networks, or linear maps.
"""

from typing import Any

from torch import Tensor, nn

from otterlm.errors import OtterError
from otterlm.signals.curve import on_curve
from otterlm.signals.reward.config import RewardConfig
from otterlm.signals.vocabulary import VocabularyHead, vocabulary_head


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
        self.config = config
        self.prefix = nn.Linear(width, 1, **factory)
        rank, hidden = config.vocabulary_rank, config.vocabulary_hidden
        self.vocabulary = vocabulary_head(width, rank, hidden, base_width, **factory)

    def initialize(self) -> None:
        """Every reward starts at 0."""
        nn.init.zeros_(self.prefix.weight)
        nn.init.zeros_(self.prefix.bias)
        if self.vocabulary is not None:
            self.vocabulary.initialize()

    def forward(self, state: Tensor, unembedding: Tensor) -> "RewardSignal":
        """Reads the rewards from `[B, T, d + d']` and the base's unembedding, `[V, d]`."""
        return RewardSignal(self, state, unembedding)


class RewardSignal:
    """Holds the rewards of one forward pass. Both heads are computed when asked for.

    Attributes:
        state: [h, h'] after the final norm, `[B, T, d + d']`.
    """

    def __init__(self, head: RewardHead, state: Tensor, unembedding: Tensor) -> None:
        self.state = state
        self._head = head
        self._unembedding = unembedding

    @property
    def prefix(self) -> Tensor:
        """Returns the reward of every prefix that ends in this pass, `[B, T]` float32."""
        return self._head.prefix(self.state).squeeze(-1).float()

    @property
    def numbers(self) -> Tensor:
        """Returns what the vocabulary head predicts one token later, `[B, T, 1]` float32: the reward."""
        return self.prefix[..., None]

    def beside(self, token: int, before: "RewardSignal") -> float:
        """Returns the reward of the prefix that ends with the token."""
        return float(self.prefix[0, -1])

    @property
    def calibrated(self) -> Tensor:
        """Returns the expected score of every prefix, `[B, T]` float32: `prefix` through the calibration's curve.

        Raises:
            OtterError: the adapter was not calibrated.
        """
        calibration = self._head.config.calibration
        if calibration is None:
            raise OtterError("this adapter was not calibrated: run otter calibrate")
        return on_curve(calibration.curve, self.prefix)

    def vocabulary(self, tokens: Tensor | None = None, position: int = -1) -> Tensor:
        """Returns the expected reward after each next token.

        Args:
            tokens: `[B, k]` token ids to score; None: the whole vocabulary.
            position: index of the prefix's last token in this pass.

        Returns:
            `[B, k]` or `[B, V]`, float32.

        Raises:
            OtterError: the adapter was trained without a vocabulary head.
        """
        state = self.state[:, position]
        if tokens is None:
            gain = self._vocabulary_head(state, self._unembedding)
        else:
            gain = self.gain(state.unsqueeze(1), tokens)
        return gain.add_(self.prefix[:, position, None])

    def gain(self, state: Tensor, tokens: Tensor) -> Tensor:
        """Returns how much each token is expected to change the reward of the prefix that ends in a state.

        Args:
            state: `[..., 1, d + d']`, or `[n, d + d']` with one token each.
            tokens: `[..., k]`, or `[n]`.

        Returns:
            As `tokens`, float32.
        """
        return self._vocabulary_head.of_tokens(state, tokens, self._unembedding)

    @property
    def _vocabulary_head(self) -> VocabularyHead:
        if self._head.vocabulary is None:
            raise OtterError("this adapter has no vocabulary head (vocabulary_rank is 0): use search, or train one")
        return self._head.vocabulary

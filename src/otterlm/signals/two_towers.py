"""Scores every token of the vocabulary by two small networks: f(E[v]) . g(s), E the base's unembedding, s the state.

f is the same for every text, so its outputs are stored as a table, `[V, rank]`, and scoring a vocabulary costs as much
as with a linear map of that rank. The scores of some tokens are read from their rows.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from otterlm.signals.low_rank import Fold, version_of

ROWS = 4096
"""So many rows of the table are computed at once: the middle is wider than the table."""


class TwoTowerHead(nn.Module):
    """Scores the vocabulary.

    Args:
        width: of the state, d + d'.
        hidden: width of both networks' middles.
        rank: of their outputs.
        base_width: d, the width of the unembedding's rows.
        dtype, device: of the parameters.
    """

    def __init__(self, width: int, hidden: int, rank: int, base_width: int, **factory: Any) -> None:
        super().__init__()
        self.state_in = nn.Linear(width, hidden, **factory)
        self.state_out = nn.Linear(hidden, rank, **factory)
        self.token_in = nn.Linear(base_width, hidden, **factory)
        self.token_out = nn.Linear(hidden, rank, **factory)
        self._fold = Fold()

    def initialize(self) -> None:
        """Every score starts at 0."""
        for layer in (self.state_in, self.token_in, self.token_out):
            layer.reset_parameters()
        nn.init.zeros_(self.state_out.weight)
        nn.init.zeros_(self.state_out.bias)

    def forward(self, state: Tensor, unembedding: Tensor) -> Tensor:
        """Returns the scores of all tokens, `[..., d + d']` to `[..., V]` float32. Without a gradient to f."""
        return F.linear(self._of_state(state), self._table(unembedding)).float()

    def of_tokens(self, state: Tensor, tokens: Tensor, unembedding: Tensor) -> Tensor:
        """Returns the scores of some tokens: `[..., 1, d + d']` with `[..., k]` ids, or `[n, d + d']` with `[n]`."""
        if torch.is_grad_enabled() or version_of(self._parts(unembedding)) is None:
            return self.of_embeddings(state, unembedding[tokens])
        return (F.embedding(tokens, self._table(unembedding)) * self._of_state(state)).sum(dim=-1).float()

    def of_embeddings(self, state: Tensor, embeddings: Tensor, dropout: float = 0.0) -> Tensor:
        """Returns the scores of some tokens by their embeddings, `[..., k, d]` or `[n, d]`.

        Args:
            state: see `of_tokens`.
            embeddings: rows of the unembedding.
            dropout: of the state and of both middles, while the head is fitted.
        """
        token = self._of_embeddings(embeddings, dropout)
        return (token * self._of_state(F.dropout(state, dropout), dropout)).sum(dim=-1).float()

    def standardize(self, mean: Tensor, deviation: Tensor, scale: float) -> None:
        """Makes a head that was fitted to standardised inputs one of the inputs as they are.

        Args:
            mean, deviation: of the states, `[d + d']`.
            scale: that embeddings were divided by.
        """
        with torch.no_grad():
            self.state_in.weight.div_(deviation)
            self.state_in.bias.sub_(self.state_in.weight @ mean)
            self.token_in.weight.div_(scale)

    def _table(self, unembedding: Tensor) -> Tensor:
        """Returns f of every token, `[V, rank]`."""

        def table() -> Tensor:
            return torch.cat([self._of_embeddings(rows) for rows in unembedding.split(ROWS)])

        return self._fold.remember(self._parts(unembedding), table)

    def _parts(self, unembedding: Tensor) -> tuple[Tensor, ...]:
        return unembedding, *self.token_in.parameters(), *self.token_out.parameters()

    def _of_state(self, state: Tensor, dropout: float = 0.0) -> Tensor:
        return self.state_out(F.dropout(F.silu(self.state_in(state)), dropout))

    def _of_embeddings(self, embeddings: Tensor, dropout: float = 0.0) -> Tensor:
        middle = F.silu(self.token_in(embeddings.to(self.token_in.weight.dtype)))
        return self.token_out(F.dropout(middle, dropout))

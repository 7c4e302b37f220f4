"""Scores every token of the vocabulary by two small networks: f(E[v]) . g(s), E the base's unembedding, s the state.

f is the same for every text, so its outputs are stored as a table, `[V, rank]`, and scoring a vocabulary costs as much
as with a linear map of that rank. Where only some tokens are asked for, their rows alone are computed, each once.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from otterlm.signals.low_rank import Fold, Version, version_of


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
        self._rows = TokenRows()

    def initialize(self) -> None:
        """Every score starts at 0."""
        for layer in (self.state_in, self.token_in, self.token_out):
            layer.reset_parameters()
        nn.init.zeros_(self.state_out.weight)
        nn.init.zeros_(self.state_out.bias)

    def forward(self, state: Tensor, unembedding: Tensor) -> Tensor:
        """Returns the scores of all tokens, `[..., d + d']` to `[..., V]` float32. Without a gradient to f."""
        table = self._fold.remember(self._parts(unembedding), lambda: self._of_embeddings(unembedding))
        return F.linear(self._of_state(state), table).float()

    def of_tokens(self, state: Tensor, tokens: Tensor, unembedding: Tensor) -> Tensor:
        """Returns the scores of some tokens: `[..., 1, d + d']` with `[..., k]` ids, or `[n, d + d']` with `[n]`."""
        if torch.is_grad_enabled() or tokens.device.type != "cpu":  # a GPU would have to be waited for
            return self.of_embeddings(state, unembedding[tokens])
        rows = self._rows.of(
            tokens, len(unembedding), self._parts(unembedding), lambda new: self._of_embeddings(unembedding[new])
        )
        return (rows * self._of_state(state)).sum(dim=-1).float()

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

    def _parts(self, unembedding: Tensor) -> tuple[Tensor, ...]:
        return unembedding, *self.token_in.parameters(), *self.token_out.parameters()

    def _of_state(self, state: Tensor, dropout: float = 0.0) -> Tensor:
        return self.state_out(F.dropout(F.silu(self.state_in(state)), dropout))

    def _of_embeddings(self, embeddings: Tensor, dropout: float = 0.0) -> Tensor:
        middle = F.silu(self.token_in(embeddings.to(self.token_in.weight.dtype)))
        return self.token_out(F.dropout(middle, dropout))


class TokenRows:
    """Remembers what a head makes of the tokens that it was asked for: most tokens come again."""

    def __init__(self) -> None:
        self._made: tuple[Version, Tensor, Tensor] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return TokenRows, ()  # a copy's weights lie elsewhere

    def of(
        self, tokens: Tensor, vocabulary: int, parts: tuple[Tensor, ...], make: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Returns the rows of some tokens, `[..., rank]`.

        Args:
            tokens: ids, `[...]`.
            vocabulary: how many tokens there are.
            parts: what rows are made of. When one of them has changed, all are made anew.
            make: maps `[n]` ids to `[n, rank]`.
        """
        version = version_of(parts)
        if version is None:
            return make(tokens)
        if self._made is None or self._made[0] != version:
            self._made = version, *_empty(vocabulary, make)
        _, table, known = self._made
        if not bool((seen := known[tokens]).all()):
            new = tokens[~seen].unique()
            with _outside():
                table[new] = make(new)
                known[new] = True
        return F.embedding(tokens, table)


def _empty(vocabulary: int, make: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Returns a table without rows yet, and a mark for each token that has one."""
    with _outside():
        row = make(torch.zeros(1, dtype=torch.int64))
        return row.new_empty(vocabulary, row.shape[-1]), torch.zeros(vocabulary, dtype=torch.bool)


@contextmanager
def _outside() -> Iterator[None]:
    """Leaves the contexts that a call stands in: rows outlive them."""
    with torch.inference_mode(False), torch.no_grad(), torch.autocast("cpu", enabled=False):
        yield

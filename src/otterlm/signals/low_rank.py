"""Scores every token of the vocabulary by a low-rank map of the state: E[v] . up(down(s)), E the base's
unembedding, so that a head over 49,152 tokens takes a few ten thousand parameters."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LowRankHead(nn.Module):
    """Scores the vocabulary.

    Args:
        width: of the state, d + d'.
        rank: of the map.
        base_width: d, the width of the unembedding's rows.
        dtype, device: of the parameters.
    """

    def __init__(self, width: int, rank: int, base_width: int, **factory: Any) -> None:
        super().__init__()
        self.down = nn.Linear(width, rank, bias=False, **factory)
        self.up = nn.Linear(rank, base_width, bias=False, **factory)
        self._fold = Fold()

    def initialize(self) -> None:
        """Every score starts at 0."""
        self.down.reset_parameters()
        nn.init.zeros_(self.up.weight)

    def forward(self, state: Tensor, unembedding: Tensor) -> Tensor:
        """Returns the scores of all tokens, `[..., d + d']` to `[..., V]` float32. Without a gradient to `up`."""
        return F.linear(self.down(state), self._fold(self.up.weight, unembedding)).float()

    def direction(self, state: Tensor) -> Tensor:
        """Returns u(s), `[..., d]`: what is added to the base's state before its unembedding."""
        return self.up(self.down(state))

    def of_tokens(self, state: Tensor, tokens: Tensor, unembedding: Tensor) -> Tensor:
        """Returns the scores of some tokens: `[..., 1, d + d']` with `[..., k]` ids, or `[n, d + d']` with `[n]`."""
        return self.of_embeddings(state, unembedding[tokens])

    def of_embeddings(self, state: Tensor, embeddings: Tensor) -> Tensor:
        """Returns the scores of some tokens by their embeddings, `[..., k, d]` or `[n, d]`."""
        direction = self.direction(state)
        return (embeddings.to(direction.dtype) * direction).sum(dim=-1).float()


Version = tuple[tuple[int, int], ...] | None


def version_of(parts: tuple[Tensor, ...]) -> Version:
    """Returns what differs after a tensor has changed; None if torch does not count what is written to them."""
    if any(part.is_inference() for part in parts):
        return None
    return tuple((part.data_ptr(), part._version) for part in parts)


class Fold:
    """Remembers what a head makes of the unembedding, such as E times an up projection, `[V, rank]`, so that scoring a
    vocabulary costs V x rank, not V x d."""

    def __init__(self) -> None:
        self._made: tuple[Version, Tensor] | None = None

    def clear(self) -> None:
        """Forgets the product."""
        self._made = None

    def __reduce__(self) -> tuple[Any, ...]:
        return Fold, ()  # a copy's weights lie elsewhere

    def __call__(self, up: Tensor, unembedding: Tensor, rows: Tensor | None = None) -> Tensor:
        """Returns the product, made anew when a weight has changed.

        Args:
            up: `[d, rank]`.
            unembedding: `[V, d]`.
            rows: `[N]`, the tokens to score; None: all.
        """

        def product() -> Tensor:
            table = unembedding if rows is None else unembedding[rows]
            return F.linear(table.to(up.dtype), up.T)

        return self.remember((up, unembedding) if rows is None else (up, unembedding, rows), product)

    def remember(self, parts: tuple[Tensor, ...], make: Callable[[], Tensor]) -> Tensor:
        """Returns what `make` gives, made anew when one of the tensors that it is made of has changed."""
        version = version_of(parts)
        if self._made is None or version is None or self._made[0] != version:
            # It outlives the contexts that the first call may stand in.
            with torch.inference_mode(False), torch.no_grad(), torch.autocast(parts[0].device.type, enabled=False):
                self._made = (version, make())
        return self._made[1]

"""Guesses at the tokens after the next one, from the state that gave the next one's logits.

Head i guesses the token at t + 1 + i from the state at t, as in Medusa (arXiv 2401.10774). Sequential heads also see
the tokens t + 1 ... t + i, as in Hydra (arXiv 2402.05109): each passes a code on to the next, as a recurrent drafter
does (arXiv 2403.09919). One shared head may stand for all, fed with its own code and the token that it guessed, as in
EAGLE (arXiv 2401.15077); it learns on its own codes (EAGLE-3, arXiv 2503.01840).

All read their logits through the base's unembedding, restricted to the tokens that the base generates most often
(arXiv 2502.14856): a token that cannot be drafted costs a pass, never a wrong word.
"""

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from otterlm.signals.draft.config import DraftConfig
from otterlm.signals.low_rank import Fold


class Drafter(Protocol):
    """A drafter predicts tokens from the states of a pass.

    Attributes:
        state: `[B, T, width]`.
        heads: how many tokens can be drafted, one after the other.
        vocabulary: `[N]` int64, the tokens that can be drafted.
    """

    state: Tensor
    heads: int
    vocabulary: Tensor

    def code(self, head: int, state: Tensor, token: Tensor, previous: Tensor | None) -> Tensor:
        """Computes a head's code of a state and of the tokens after it.

        Args:
            head: from 0.
            state: `[..., width]`.
            token: `[...]`, the token that the guess is to follow.
            previous: `[..., rank]`, the code of the head before, which saw the token before; None for the first.

        Returns:
            `[..., rank]`.
        """

    def scores(self, head: int, code: Tensor) -> Tensor:
        """Maps a code, `[..., rank]`, to a head's logits over the draft vocabulary, `[..., N]`."""


class DraftHead(nn.Module):
    """Holds the draft heads.

    Args:
        config: of the signal.
        width: d + d'.
        base_width: d, the width of the unembedding's rows.
        dtype, device: of the parameters.

    Attributes:
        vocabulary: `[N]` int64, the tokens that can be drafted.
    """

    vocabulary: Tensor

    def __init__(self, config: DraftConfig, width: int, base_width: int, **factory: Any) -> None:
        super().__init__()
        self.config = config
        reads = width + (config.rank + base_width if config.sequential else 0)
        heads = range(1 if config.shared else config.heads)
        self.inputs = nn.ModuleList([nn.Linear(reads, config.width, **factory) for _ in heads])
        self.outputs = nn.ModuleList([nn.Linear(config.width, config.rank, **factory) for _ in heads])
        self.up = nn.Linear(config.rank, base_width, bias=False, **factory)
        self.register_buffer("vocabulary", torch.arange(config.vocabulary_size, device=factory.get("device")))
        self._fold = Fold()

    def initialize(self) -> None:
        """Initialises the linear layers as torch does by default."""
        for linear in (*self.inputs, *self.outputs, self.up):
            linear.reset_parameters()

    def forward(self, state: Tensor, unembedding: Tensor) -> "DraftSignal":
        """Maps `[B, T, d + d']` and the base's unembedding, `[V, d]`, to the signal."""
        return DraftSignal(self, state, unembedding)

    def table(self, unembedding: Tensor) -> Tensor:
        """Returns the table that codes are compared with, a row for each token of the draft vocabulary, `[N, rank]`."""
        if torch.is_grad_enabled() and self.up.weight.requires_grad:
            return F.linear(unembedding[self.vocabulary].to(self.up.weight.dtype), self.up.weight.T)
        return self._fold(self.up.weight, unembedding, self.vocabulary)


class DraftSignal:
    """Holds the drafts of one forward pass, as a `Drafter`.

    Attributes:
        state: [h, h'] after the final norm, `[B, T, d + d']`.
    """

    def __init__(self, head: DraftHead, state: Tensor, unembedding: Tensor) -> None:
        self.state = state
        self.heads = head.config.heads
        self.vocabulary = head.vocabulary
        self._head = head
        self._unembedding = unembedding
        self._table: Tensor | None = None

    def code(self, head: int, state: Tensor, token: Tensor, previous: Tensor | None) -> Tensor:
        """Computes a code, see `Drafter`. A head that is not sequential reads the state alone."""
        reads = [state]
        if self._head.config.sequential:
            if previous is None:
                previous = state.new_zeros(*state.shape[:-1], self._head.config.rank)
            reads += [previous, self._unembedding[token].to(state.dtype)]
        index = 0 if self._head.config.shared else head
        return self._head.outputs[index](F.silu(self._head.inputs[index](torch.cat(reads, dim=-1))))

    def scores(self, head: int, code: Tensor) -> Tensor:
        """Computes logits, see `Drafter`. All heads share one table."""
        if self._table is None:
            self._table = self._head.table(self._unembedding)
        return F.linear(code, self._table)

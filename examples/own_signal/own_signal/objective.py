"""Trains the signal to predict the base's entropy some tokens later."""

from typing import Any

import torch
from torch import Tensor, nn

from otterlm.model import OtterModel
from otterlm.signals.base import Capability
from otterlm.training.data.packing import Batch, followed_tokens
from otterlm.training.sources import Source, of_adapter, read_batch


class UncertaintyObjective(nn.Module):
    """The objective is the squared error to the entropy of the base's next-token distribution `ahead` tokens later.

    The texts are the base's.

    Args:
        model: the base with the adapter.
        source: shows the base's intermediates.
    """

    def __init__(self, model: OtterModel, source: Source) -> None:
        super().__init__()
        self.model = model
        self.source = source
        self.name = model.adapter_name(None, Capability.PREFIX)
        self.identity = of_adapter(model, self.name)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Returns scalars: `loss`, and in evaluation `variance`, the loss of predicting the batch's mean everywhere."""
        signal = read_batch(self.model, self.source, batch, self.name)
        config: Any = self.model.adapter(self.name).config.signal
        row, position, _ = followed_tokens(batch)
        # The tokens of a packed text are consecutive, so the state `ahead` tokens earlier is so many positions before.
        inside = position >= config.ahead
        row, position = row[inside], position[inside]
        expected = self._entropy(signal.state[row, position])  # [n]
        predicted = signal.prefix[row, position - config.ahead]
        metrics = {"loss": (predicted - expected).square().mean()}
        return metrics if self.training else metrics | {"variance": expected.var()}

    @torch.no_grad()
    def _entropy(self, state: Tensor) -> Tensor:
        """Maps `[n, d + d']` to the entropy of the base's next-token distribution in nats, `[n]`."""
        unembedding = self.model.base_model.get_output_embeddings()
        hidden = state[:, : unembedding.weight.shape[1]].to(unembedding.weight.dtype)
        shares = unembedding(hidden).float().log_softmax(dim=-1)
        return -(shares.exp() * shares).sum(dim=-1)

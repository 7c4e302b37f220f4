"""Trains the contrast signal: each side learns to write its corpus."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from otterlm.families.facts import decoder_config, logit_transform
from otterlm.families.parts import base_logits
from otterlm.model import OtterModel
from otterlm.signals.base import Capability
from otterlm.training.data.corpora import WANTED
from otterlm.training.data.packing import Batch, followed_tokens
from otterlm.training.sources import Source, of_adapter, read_batch


class ContrastObjective(nn.Module):
    """The objective is the language-model loss of each side on its texts: cross-entropy of base logits + E . u(s).

    Args:
        model: the base with the adapter.
        source: shows the base's intermediates.
        adapter_name: may be left out where there is one.

    Raises:
        OtterError: what the base does to its logits is not known.
    """

    def __init__(self, model: OtterModel, source: Source, adapter_name: str | None = None) -> None:
        super().__init__()
        self.model = model
        self.source = source
        self.name = model.adapter_name(adapter_name, Capability.REPLACES)
        self.identity = of_adapter(model, self.name)
        self._scaled = logit_transform(decoder_config(model.base_model), model.family) != (None, None)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Returns scalars: `loss`, a mean over tokens, and in evaluation `base` and `accuracy`.

        `base` is the loss of the base, and `accuracy` is how often a text is likelier to its side than to the other.
        """
        state = read_batch(self.model, self.source, batch, self.name).state
        row, position, parent = followed_tokens(batch)
        seen, target = state[row, parent], batch.input_ids[row, position]  # [n, d + d'], [n]
        head = self.model.adapter(self.name).head
        of_expert = (batch.labels == WANTED)[row]
        if self.training:
            direction = torch.where(of_expert[:, None], head.expert.direction(seen), head.anti_expert.direction(seen))
            return {"loss": self._loss(seen, direction, target).mean()}
        expert, anti = (self._loss(seen, side.direction(seen), target) for side in (head.expert, head.anti_expert))
        loss = torch.where(of_expert, expert, anti)
        # The margin of a text is by how much it is likelier to its side than to the other.
        margin = loss.new_zeros(len(batch.rows)).index_add(0, row, torch.where(of_expert, anti - expert, expert - anti))
        return {
            "loss": loss.mean(),
            "base": self._loss(seen, torch.zeros_like(seen[:, :1]), target).mean(),
            "accuracy": ((margin > 0).float() + (margin == 0).float() / 2).mean(),
        }

    def _loss(self, seen: Tensor, direction: Tensor, target: Tensor) -> Tensor:
        """Returns the cross-entropy of base logits + E u, `[n]`.

        E h + E u = E (h + u), unless the base does more to its logits.
        """
        unembedding = self.model.base_model.get_output_embeddings()
        hidden = seen[:, : unembedding.weight.shape[1]].to(unembedding.weight.dtype)
        direction = direction.to(hidden.dtype)
        if self._scaled:
            logits = base_logits(self.model.base_model, self.model.family, hidden)
            logits = logits + F.linear(direction.expand_as(hidden), unembedding.weight)
        else:
            logits = unembedding(hidden + direction)
        return F.cross_entropy(logits.float(), target, reduction="none")

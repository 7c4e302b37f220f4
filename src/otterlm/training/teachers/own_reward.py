"""A trained reward rates the base's responses itself, as the scorer of its own second stage."""

from collections.abc import Sequence

import torch

from otterlm.identity import Identity, of_weights
from otterlm.model import OtterModel
from otterlm.signals.base import Capability
from otterlm.signals.reward.losses import final_rewards
from otterlm.training.data.packing import CHOSEN, Example, collate
from otterlm.training.sources import LiveBase, read_batch
from otterlm.training.teachers.responses import Response


class OwnReward:
    """Rates responses by an adapter's reward at their last token, see `otterlm.training.teachers.responses.Rate`.

    Args:
        model: the base with the trained adapter.
        adapter_name: may be left out where there is one.

    Attributes:
        identity: a digest of the adapter's weights.
    """

    def __init__(self, model: OtterModel, adapter_name: str | None = None) -> None:
        self._model = model
        self._name = model.adapter_name(adapter_name, Capability.PREFIX)
        self.identity: Identity = of_weights(model.adapter(self._name))

    @torch.no_grad()
    def __call__(self, responses: Sequence[Response]) -> list[float]:
        """Returns the reward of each response."""
        texts = [Example(row, tuple(each.prompt_tokens), (tuple(each.tokens),)) for row, each in enumerate(responses)]
        batch = collate(texts).to(self._model.device)
        rewards = read_batch(self._model, LiveBase(self._model), batch, self._name).prefix
        return final_rewards(rewards, batch.segments, CHOSEN).tolist()

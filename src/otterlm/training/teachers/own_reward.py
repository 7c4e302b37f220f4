"""A trained reward rates the base's responses itself, as the scorer of its second stage."""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from otterlm.identity import Identity, of_weights
from otterlm.model import OtterModel
from otterlm.signals.base import Capability
from otterlm.signals.reward.losses import final_rewards
from otterlm.training.data.packing import CHOSEN, Example, collate
from otterlm.training.sources import LiveBase, read_batch
from otterlm.training.teachers.responses import Response


class OwnReward:
    """Rates responses by an adapter's reward at their last token, see `otterlm.training.teachers.responses.Rate`.

    It rates by the weights that the adapter has now, whatever is trained later.

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
        self._weights = _copied(model.adapter(self._name))

    @torch.no_grad()
    def __call__(self, responses: Sequence[Response]) -> list[float]:
        """Returns the reward of each response."""
        adapter = self._model.adapter(self._name)
        trained = _copied(adapter)
        adapter.load_state_dict(self._weights)
        try:
            return self._rewards(responses)
        finally:
            adapter.load_state_dict(trained)

    def _rewards(self, responses: Sequence[Response]) -> list[float]:
        by_prompt = itertools.groupby(responses, key=lambda each: tuple(each.prompt_tokens))
        examples = [
            Example(row, prompt, tuple(tuple(each.tokens) for each in several))
            for row, (prompt, several) in enumerate(by_prompt)
        ]
        batch = collate(examples).to(self._model.device)
        rewards = read_batch(self._model, LiveBase(self._model), batch, self._name).prefix.cpu()
        segments = batch.segments.cpu()  # a GPU would be waited for at every response
        return [
            float(final_rewards(rewards[row, None], segments[row, None], branch))
            for row, example in enumerate(examples)
            for branch in range(CHOSEN, CHOSEN + len(example.branches))
        ]


def _copied(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}

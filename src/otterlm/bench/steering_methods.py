"""Makes the methods of the steering bench, and the reward that all of them are measured by."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from otterlm.bench.answering import SAMPLING, Method
from otterlm.decoding import CandidateSearch, RewardGuidance
from otterlm.decoding.scoring import score_sequences
from otterlm.model import OtterModel
from otterlm.training.teachers.continuations import pad_left

BASE, SAMPLE, GUIDANCE, SAMPLED_GUIDANCE, SEARCH = "base", "sample", "guidance", "guidance, sampled", "search"
SEARCH_WEIGHT = 1.0

Label = tuple[str, float | None]
"""A label is a method and its weight; None where it has none."""


def methods_of(
    base: PreTrainedModel, model: OtterModel, adapter_name: str, weights: Sequence[float], sampled: bool
) -> dict[Label, Method]:
    """Makes the methods that give one response to a prompt.

    Args:
        base: the frozen model.
        model: the base with the adapter.
        adapter_name: of the reward that steers.
        weights: of guidance.
        sampled: whether guidance is sampled, too.
    """

    def guidance(weight: float, settings: dict[str, Any]) -> Method:
        def steer(mask: Tensor) -> dict[str, Any]:
            processor = RewardGuidance(model, weight=weight, adapter_name=adapter_name)
            return settings | {"logits_processor": [processor]}

        return Method(model, steer)

    def search(mask: Tensor) -> dict[str, Any]:
        return {"custom_generate": CandidateSearch(SEARCH_WEIGHT, adapter_name=adapter_name)}

    methods: dict[Label, Method] = {
        (BASE, None): Method(base, lambda mask: {}),
        (SAMPLE, None): Method(base, lambda mask: SAMPLING),
    }
    methods |= {(GUIDANCE, weight): guidance(weight, {}) for weight in weights}
    if sampled:
        methods |= {(SAMPLED_GUIDANCE, weight): guidance(weight, SAMPLING) for weight in weights}
    return methods | {(SEARCH, SEARCH_WEIGHT): Method(model, search)}


@dataclass(frozen=True, slots=True)
class FinalReward:
    """The final reward is an adapter's after the last token of a text.

    The same text is read once, so it has one reward whatever its padding was.

    Attributes:
        model: the base with the adapter.
        adapter_name: of the reward.
        pad: the token that pads.
        known: rewards of the texts that were read.
    """

    model: OtterModel
    adapter_name: str
    pad: int
    known: dict[tuple[int, ...], float] = field(default_factory=dict)

    def __call__(self, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> list[float]:
        """Returns the reward of each response after its prompt."""
        texts = [(*prompt, *response) for prompt, response in zip(prompts, responses, strict=True)]
        new = [text for text in dict.fromkeys(texts) if text not in self.known]
        if new:
            ids, mask = pad_left(new, self.pad, self.model.device)
            rewards = score_sequences(self.model, ids, mask, self.adapter_name)[:, -1]
            self.known.update(zip(new, rewards.tolist(), strict=True))
        return [self.known[text] for text in texts]

"""Makes the methods of the steering bench, and the reward that all of them are measured by."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from otterlm.bench.answering import SAMPLING, Method
from otterlm.bench.args_rival import args_settings
from otterlm.decoding import CandidateSearch, RewardGuidance
from otterlm.decoding.scoring import score_sequences
from otterlm.identity import of_weights
from otterlm.interventions import CANDIDATES, MIN_P
from otterlm.model import OtterModel
from otterlm.training.teachers.continuations import pad_left
from otterlm.training.teachers.reward_model import SeparateRewardModel

BASE, SAMPLE, GUIDANCE, SAMPLED_GUIDANCE = "base", "sample", "guidance", "guidance, sampled"
SEARCH, RIVAL = "search", "args"
SEARCH_WEIGHT = 1.0

Label = tuple[str, float | None]
"""A label is a method and its weight; None where it has none."""


@dataclass(frozen=True, slots=True)
class Rival:
    """A rival of guidance is ARGS with a separate reward model.

    Attributes:
        model: the reward model.
        unit: what a weight of 1 stands for, see `otterlm.bench.args_rival.unit_of`.
        pad: the token that pads.
    """

    model: SeparateRewardModel
    unit: float
    pad: int


def methods_of(
    base: PreTrainedModel,
    model: OtterModel,
    adapter_name: str,
    weights: Sequence[float],
    sampled: bool,
    rival: Rival | None = None,
) -> dict[Label, Method]:
    """Makes the methods that give one response to a prompt.

    Args:
        base: the frozen model.
        model: the base with the adapter.
        adapter_name: of the reward that steers.
        weights: of guidance and of a rival.
        sampled: whether guidance is sampled, too.
        rival: chooses greedily from the same candidates as the search.
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
    methods |= {(SEARCH, SEARCH_WEIGHT): Method(model, search)}
    if rival is None:
        return methods
    parameters = sum(each.numel() for each in rival.model.parameters())
    depends = {"rewards": of_weights(rival.model), "unit": rival.unit}
    return methods | {
        (RIVAL, weight): Method(
            base, args_settings(rival.model, weight / rival.unit, CANDIDATES, MIN_P, rival.pad), parameters, depends
        )
        for weight in weights
    }


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

"""Guidance adds the weighted rewards of next tokens to their logits, from the pass that is made anyway."""

from torch import Tensor

from otterlm.checks import check_chance, check_count, check_weight
from otterlm.decoding.steering import guide
from otterlm.generation import SignalProcessor
from otterlm.interventions import MIN_P, InterventionSettings
from otterlm.model import OtterModel
from otterlm.signals.base import Capability
from otterlm.signals.reward.head import RewardSignal


class RewardGuidance(SignalProcessor):
    """Adds the expected reward of every plausible next token to its logit. Works with greedy decoding, sampling, beams
    and assistants, in batches.

    The weight is in the adapter's own unit (`SignalConfig.unit`): at weight 1 a token that is one standard deviation
    better than the base's plausible tokens gains half a nat. Sampled text then leaves the base by about weight^2 / 8
    nats a token.

    Args:
        model: the model that generates.
        weight: of the reward; 1 is recommended, 0 leaves the scores untouched.
        top_k: score only the base's k likeliest tokens and rule out the others (as ARGS does); None: the whole
            vocabulary.
        adapter_name: whose reward; may be left out where there is one.
        min_p: rule out tokens with less than this share of the likeliest token's probability; 0 rules out none.

    Raises:
        OtterError: a setting is out of range, or (when called) the scores are not of this model's latest pass.
    """

    def __init__(
        self,
        model: OtterModel,
        weight: float = 1.0,
        top_k: int | None = None,
        adapter_name: str | None = None,
        min_p: float = MIN_P,
    ) -> None:
        super().__init__(model, adapter_name, Capability.ADDS)
        self.weight = check_weight("weight", weight)
        self.top_k = None if top_k is None else check_count("top_k", top_k)
        self.min_p = check_chance("min_p", min_p)
        self.off = self.weight == 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Turns `[B, T]` tokens so far and `[B, V]` scores of the next into `[B, V]`."""
        signal: RewardSignal | None = None if self.off else self.signal(input_ids, scores)
        if signal is None:
            return scores
        assert self.model is not None
        unit = self.model.adapter(self.adapter_name).config.signal.unit
        return guide(scores, signal.vocabulary, self.weight / unit, self.top_k, self.min_p)


def make(model: OtterModel, adapter_name: str, settings: InterventionSettings) -> RewardGuidance:
    """Makes the guidance of the registry, see `otterlm.interventions`."""
    return RewardGuidance(model, settings.weight, settings.top_k, adapter_name, settings.min_p)

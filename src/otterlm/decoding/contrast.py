"""Adds alpha * (expert - anti-expert) to the logits (DExperts, arXiv 2105.03023), from the pass that gave them."""

from torch import Tensor

from otterlm.checks import check_share, check_weight
from otterlm.decoding.steering import contrast
from otterlm.generation import SignalProcessor
from otterlm.interventions import InterventionSettings
from otterlm.model import OtterModel
from otterlm.signals.base import Capability
from otterlm.signals.contrast.head import ContrastSignal


class ContrastGuidance(SignalProcessor):
    """Moves the logits towards the expert and away from the anti-expert.

    It works with greedy decoding, sampling, beams and assistants, in batches.

    Args:
        model: the model that generates.
        alpha: how far; 0 leaves the scores untouched.
        top_p: only the base's likeliest tokens that together have this probability stay possible, as in DExperts, so
            that the text stays likely to the base.
        adapter_name: of the contrast; may be left out where there is one.

    Raises:
        OtterError: a setting is out of range, or (when called) the scores are not of this model's latest pass.
    """

    def __init__(self, model: OtterModel, alpha: float, top_p: float = 0.9, adapter_name: str | None = None) -> None:
        super().__init__(model, adapter_name, Capability.REPLACES)
        self.alpha = check_weight("alpha", alpha)
        self.top_p = check_share("top_p", top_p)
        self.off = self.alpha == 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Maps `[B, T]` tokens so far and `[B, V]` scores of the next to `[B, V]`."""
        signal: ContrastSignal | None = None if self.off else self.signal(input_ids, scores)
        if signal is None:
            return scores
        return contrast(scores, signal.difference().to(scores), self.alpha, self.top_p)


def make(model: OtterModel, adapter_name: str, settings: InterventionSettings) -> ContrastGuidance:
    """Makes the contrast of the registry, see `otterlm.interventions`."""
    return ContrastGuidance(model, settings.alpha, settings.top_p, adapter_name)

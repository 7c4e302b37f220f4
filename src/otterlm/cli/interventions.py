"""The interventions of a set of adapters, as the arguments of `generate` that make it use them."""

from dataclasses import dataclass
from typing import Any

from otterlm.decoding import BestOfN, CandidateSearch, ContrastGuidance, RewardGuidance, SpeculativeDecoding
from otterlm.errors import OtterError
from otterlm.model import OtterModel

METHODS = ("guidance", "search", "best-of-n")


@dataclass(frozen=True, slots=True)
class Intervention:
    """What to do with each signal that is there.

    Attributes:
        method: what a reward does, one of `METHODS`.
        weight: of the reward.
        top_k: candidates a step (guidance, search) or responses (best-of-n).
        alpha, top_p: of a contrast.
        drafts, confidence: of a draft, how many a pass verifies at most, and how likely each has to be.
        temperature: of a stochastic search; None for a greedy one.
    """

    method: str = "guidance"
    weight: float = 1.0
    top_k: int = 10
    alpha: float = 2.0
    top_p: float = 0.9
    drafts: int = 3
    confidence: float = 0.0
    temperature: float | None = None

    def settings(self, model: OtterModel) -> dict[str, Any]:
        """The arguments of `model.generate`.

        Raises:
            OtterError: a setting is out of range, or two of the adapters each need a decoding loop of their own.
        """
        kinds = [model.adapter(name).config.signal.type for name in model.active_adapters]
        settings: dict[str, Any] = {}
        loops: list[Any] = []
        processors: list[Any] = []
        if "contrast" in kinds:
            processors.append(ContrastGuidance(model, self.alpha, self.top_p))
        if "reward" in kinds:
            if self.method == "search":
                mode = "greedy" if self.temperature is None else "stochastic"
                loops.append(CandidateSearch(self.weight, self.top_k, mode, self.temperature or 1.0))
                if self.temperature is not None and self.weight != 0:
                    settings["temperature"] = 1.0  # the search divides by it, after the rewards are added
            elif self.method == "best-of-n":
                loops.append(BestOfN(self.top_k, self.weight))
            else:
                processors.append(RewardGuidance(model, self.weight, self.top_k))
        if "draft" in kinds:
            loops.append(SpeculativeDecoding(self.drafts, confidence=self.confidence))
        if len(loops) > 1:
            raise OtterError(f"{self.method} and drafts both need the decoding loop: use --method guidance with drafts")
        settings |= {"logits_processor": processors} if processors else {}
        return settings | ({"custom_generate": loops[0]} if loops else {})

"""The interventions of a set of adapters, as the arguments of `generate` that make it use them."""

import math
from dataclasses import dataclass
from typing import Any

from otterlm.decoding import BestOfN, CandidateSearch, ContrastGuidance, RewardGuidance, SpeculativeDecoding
from otterlm.decoding.checks import check_chance, check_count, check_share
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

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise OtterError(f"--method must be one of {', '.join(METHODS)}, got {self.method!r}")
        check_count("--top-k", self.top_k)
        check_count("--drafts", self.drafts)
        for name, value in (("--weight", self.weight), ("--alpha", self.alpha)):
            if not math.isfinite(value):
                raise OtterError(f"{name} must be a finite number, got {value}")
        check_share("--top-p", self.top_p)
        check_chance("--confidence", self.confidence)
        if self.temperature is not None and not 0 < self.temperature < math.inf:
            raise OtterError(f"--temperature must be above 0, got {self.temperature}")

    def settings(self, model: OtterModel) -> dict[str, Any]:
        """The arguments of `model.generate`.

        Raises:
            OtterError: a setting is out of range, or two of the adapters each need a decoding loop of their own.
        """
        settings: dict[str, Any] = {}
        names: dict[str, list[str]] = {"contrast": [], "reward": [], "draft": []}
        for name in model.active_adapters:
            names[model.adapter(name).config.signal.type].append(name)
        processors: list[Any] = [
            # One nucleus, the base's: the first contrast rules out what is not in it.
            ContrastGuidance(model, self.alpha, 1.0 if index else self.top_p, name)
            for index, name in enumerate(names["contrast"])
        ]
        loops: list[Any] = []
        if self.method == "guidance":
            processors += [RewardGuidance(model, self.weight, self.top_k, name) for name in names["reward"]]
        elif names["reward"]:
            name = _only(names["reward"], f"--method {self.method}")
            if self.method == "search":
                mode = "greedy" if self.temperature is None else "stochastic"
                loops.append(CandidateSearch(self.weight, self.top_k, mode, self.temperature or 1.0, name))
                if self.temperature is not None and self.weight != 0:
                    settings["temperature"] = 1.0  # the search divides by it, after the rewards are added
            else:
                loops.append(BestOfN(self.top_k, self.weight, name))
        if names["draft"]:
            name = _only(names["draft"], "drafting")
            loops.append(SpeculativeDecoding(self.drafts, adapter_name=name, confidence=self.confidence))
        if len(loops) > 1:
            raise OtterError(f"{self.method} and drafts both need the decoding loop: use --method guidance with drafts")
        settings |= {"logits_processor": processors} if processors else {}
        return settings | ({"custom_generate": loops[0]} if loops else {})


def _only(names: list[str], what: str) -> str:
    if len(names) > 1:
        raise OtterError(f"{what} takes one adapter, got {', '.join(names)}")
    return names[0]

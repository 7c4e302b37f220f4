"""The interventions by name: what each needs, its settings, and how it is made. The command line and the playground
offer what is registered here."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from otterlm.decoding.best_of_n import BestOfN
from otterlm.decoding.checks import check_chance, check_share, check_weight
from otterlm.decoding.contrast import ContrastGuidance
from otterlm.decoding.guidance import RewardGuidance
from otterlm.decoding.rejection import RejectionSampling
from otterlm.decoding.search import CandidateSearch
from otterlm.decoding.speculative import SpeculativeDecoding
from otterlm.decoding.stop import RewardStop, check_threshold
from otterlm.errors import OtterError
from otterlm.model import OtterModel
from otterlm.settings import check_settings, setting
from otterlm.signals.base import Capability

Plug = Literal["logits_processor", "stopping_criteria", "custom_generate"]
"""Where an intervention goes in `generate`: a processor, a criterion or a loop."""


@dataclass(frozen=True, slots=True)
class InterventionSettings:
    """What can be set of interventions; each takes some of these.

    Attributes:
        weight: of a reward; 0 is the base's own decoding.
        top_k: candidates a step (guidance, search), or responses (best-of-n).
        alpha, top_p: of a contrast, see `ContrastGuidance`.
        threshold: of a reward. A stop ends a response that falls under it; rejection samples until one reaches it.
        patience: of a stop, see `RewardStop`.
        drafts, confidence: see `SpeculativeDecoding`.
        temperature: of a search that samples; None for a greedy one.
    """

    weight: float = setting(1.0, "Of a reward; 0 gives the base's tokens.")
    top_k: int = setting(10, "Candidates a step (guidance, search) or responses (best-of-n).", minimum=1)
    alpha: float = setting(2.0, "Of a contrast; 0 gives the base's tokens.")
    top_p: float = setting(0.9, "The nucleus of the base that a contrast chooses from.")
    threshold: float = setting(-math.inf, "The reward under which a response is ended; for rejection: its aim.")
    patience: int = setting(1, "Tokens in a row under the threshold that end a response.", minimum=1)
    drafts: int = setting(3, "Drafts that a pass verifies at most.", minimum=1)
    confidence: float = setting(0.0, "Chance that a draft needs to be verified; 0 verifies all.")
    temperature: float | None = None

    def __post_init__(self) -> None:
        check_settings(self)
        for name in ("weight", "alpha"):
            check_weight(getattr(self, name), f"--{name}")
        check_threshold(self.threshold, "--threshold")
        check_share("--top-p", self.top_p)
        check_chance("--confidence", self.confidence)
        if self.temperature is not None and not 0 < self.temperature < math.inf:
            raise OtterError(f"--temperature must be above 0, got {self.temperature}")


@dataclass(frozen=True, slots=True)
class InterventionType:
    """An intervention that can be asked for by its name.

    Attributes:
        name: what it is asked for by.
        needs: what the signal of its adapter must be able to do.
        plug: where it goes in `generate`.
        takes: the fields of `InterventionSettings` that it reads.
        make: makes it for a model and the name of one of its adapters.
        samples: whether it needs sampling.
        arguments: further arguments of `generate`, by the settings.
    """

    name: str
    needs: Capability
    plug: Plug
    takes: tuple[str, ...]
    make: Callable[[OtterModel, str, InterventionSettings], Any]
    samples: bool = False
    arguments: Callable[[InterventionSettings], dict[str, Any]] = lambda settings: {}


def _search(model: OtterModel, name: str, settings: InterventionSettings) -> CandidateSearch:
    mode = "greedy" if settings.temperature is None else "stochastic"
    return CandidateSearch(settings.weight, settings.top_k, mode, settings.temperature or 1.0, name)


def _undivided(settings: InterventionSettings) -> dict[str, Any]:
    """A search divides by the temperature itself, after the rewards are added."""
    return {"temperature": 1.0} if settings.temperature is not None and settings.weight != 0 else {}


_registered = {
    each.name: each
    for each in (
        InterventionType(
            "guidance",
            Capability.ADDS,
            "logits_processor",
            ("weight", "top_k"),
            lambda model, name, settings: RewardGuidance(model, settings.weight, settings.top_k, name),
        ),
        InterventionType(
            "search",
            Capability.PREFIX,
            "custom_generate",
            ("weight", "top_k", "temperature"),
            _search,
            arguments=_undivided,
        ),
        InterventionType(
            "best-of-n",
            Capability.PREFIX,
            "custom_generate",
            ("weight", "top_k"),
            lambda model, name, settings: BestOfN(settings.top_k, settings.weight, name),
            samples=True,
        ),
        InterventionType(
            "rejection",
            Capability.PREFIX,
            "custom_generate",
            ("threshold",),
            lambda model, name, settings: RejectionSampling(settings.threshold, adapter_name=name),
            samples=True,
        ),
        InterventionType(
            "stop",
            Capability.PREFIX,
            "stopping_criteria",
            ("threshold", "patience"),
            lambda model, name, settings: RewardStop(model, settings.threshold, settings.patience, name),
        ),
        InterventionType(
            "contrast",
            Capability.REPLACES,
            "logits_processor",
            ("alpha", "top_p"),
            lambda model, name, settings: ContrastGuidance(model, settings.alpha, settings.top_p, name),
        ),
        InterventionType(
            "drafts",
            Capability.DRAFTS,
            "custom_generate",
            ("drafts", "confidence"),
            lambda model, name, settings: SpeculativeDecoding(
                settings.drafts, adapter_name=name, confidence=settings.confidence
            ),
        ),
    )
}


def register_intervention(intervention: InterventionType) -> None:
    """Makes an intervention known in this process.

    Raises:
        OtterError: another has its name.
    """
    if _registered.setdefault(intervention.name, intervention) != intervention:
        raise OtterError(f"there is already an intervention named {intervention.name!r}: choose another name")


def intervention_type(name: str) -> InterventionType:
    """Returns an intervention by its name.

    Raises:
        OtterError: there is none.
    """
    if name not in _registered:
        raise OtterError(f"unknown intervention {name!r}; there are: {', '.join(_registered)}")
    return _registered[name]


def interventions(can: Capability | None = None) -> list[InterventionType]:
    """Returns the interventions that a signal with these capabilities can be used for; None: all."""
    return [each for each in _registered.values() if can is None or each.needs in can]

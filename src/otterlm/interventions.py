"""Lists the interventions by name: what each needs, its settings, and where it is made. The command line, the
playground and the engines offer what is registered here.

Nothing here needs torch: the parts of an intervention are imported when one is made.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from otterlm.checks import (
    LARGEST_PATIENCE,
    check_alarm,
    check_chance,
    check_positive,
    check_share,
    check_threshold,
    check_weight,
)
from otterlm.errors import OtterError
from otterlm.settings import check_settings, setting
from otterlm.signals import load_part
from otterlm.signals.base import Capability

if TYPE_CHECKING:
    from otterlm.model import OtterModel

Plug = Literal["logits_processor", "stopping_criteria", "custom_generate"]
"""Where an intervention goes in `generate`: a processor, a criterion or a loop."""


CANDIDATES = 10
"""So many candidates a search scores in each step, and so many responses best-of-n samples, where no other number is
asked for."""
MIN_P = 0.15
"""The least share of the likeliest token's probability that makes a token plausible, where no other is asked for. Under
0.1 strong guidance makes text unlikely, see docs/benchmarks/steering.md."""


@dataclass(frozen=True, slots=True)
class InterventionSettings:
    """What can be set of interventions; each takes some of these.

    Attributes:
        weight: of a reward, or of a rollback's steering; 1 is recommended, 0 is the base's own decoding.
        top_k: candidates a step (guidance, search) at most, or responses (best-of-n); None: `CANDIDATES` of a search
            and a best-of-n, and all plausible ones of guidance, which gets their rewards at once.
        min_p: guidance and search choose from tokens with at least this share of the likeliest one's probability.
        alpha, top_p: of a contrast, see `ContrastGuidance`.
        threshold: of a reward. A stop ends a response that falls under it; rejection samples until one reaches it.
        patience: of a stop, see `RewardStop`.
        alarm, hits, window: of a guard, see `GuardStop`; None: the adapter's.
        back: of a rollback, see `GuardRollback`.
        drafts, confidence: see `SpeculativeDecoding`.
        temperature: of a search that samples; None for a greedy one.
    """

    weight: float = setting(
        1.0, "Strength of a reward; 0 gives the base's tokens.", check=check_weight, slider=(-10.0, 10.0, 0.1)
    )
    top_k: int | None = setting(
        None,
        f"Candidates a step, or responses of best-of-n; by default {CANDIDATES}, and for guidance all plausible.",
        minimum=1,
        slider=(0, 100, 1),
    )
    min_p: float = setting(
        MIN_P,
        "Share of the likeliest token's probability that a candidate needs; 0: none.",
        check=check_chance,
        slider=(0.0, 1.0, 0.01),
    )
    alpha: float = setting(
        2.0, "Strength of a contrast; 0 gives the base's tokens.", check=check_weight, slider=(-10.0, 10.0, 0.1)
    )
    top_p: float = setting(
        0.9, "The nucleus of the base that a contrast chooses from.", check=check_share, slider=(0.05, 1.0, 0.05)
    )
    threshold: float = setting(
        -math.inf,
        "The reward under which a response is ended; for rejection: its aim.",
        check=check_threshold,
        slider=(-10.0, 10.0, 0.1),
    )
    patience: int = setting(
        1,
        "Tokens in a row under the threshold that end a response.",
        minimum=1,
        maximum=LARGEST_PATIENCE,
        slider=(1, 16, 1),
    )
    alarm: float | None = setting(
        None,
        "Probability at which a token is a hit for a guard; by default as it was calibrated.",
        check=check_alarm,
        slider=(0.0, 1.0, 0.01),
    )
    hits: int | None = setting(
        None,
        "Hits of the window that end a response; by default the guard's.",
        minimum=1,
        maximum=LARGEST_PATIENCE,
        slider=(0, 16, 1),
    )
    window: int | None = setting(
        None,
        "Latest tokens that a guard looks at; by default the guard's.",
        minimum=1,
        maximum=LARGEST_PATIENCE,
        slider=(0, 32, 1),
    )
    back: int = setting(4, "Tokens before an offence that a rollback takes back, too.", minimum=0, slider=(0, 32, 1))
    drafts: int | None = setting(
        None, "Drafts that a pass verifies at most; by default those that pay.", minimum=1, slider=(0, 16, 1)
    )
    confidence: float = setting(
        0.0, "Chance that a draft needs to be verified; 0 verifies all.", check=check_chance, slider=(0.0, 1.0, 0.05)
    )
    temperature: float | None = setting(
        None,
        "Temperature of the samples; 1 leaves the probabilities as they are.",
        check=check_positive,
        slider=(0.0, 2.0, 0.1),
    )

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True, slots=True)
class InterventionType:
    """Describes an intervention that can be named.

    Attributes:
        name: what it is asked for by.
        needs: what the signal of its adapter must be able to do.
        plug: where it goes in `generate`.
        takes: the fields of `InterventionSettings` that it reads.
        maker: `module:name` of what makes it for a model, the name of one of its adapters, and settings.
        samples: whether it needs sampling.
        arguments: further arguments of `generate`, by the settings.
    """

    name: str
    needs: Capability
    plug: Plug
    takes: tuple[str, ...]
    maker: str
    samples: bool = False
    arguments: Callable[[InterventionSettings], dict[str, Any]] = lambda settings: {}

    def make(self, model: "OtterModel", adapter_name: str, settings: InterventionSettings) -> Any:
        """Makes it for a model and the name of one of its adapters.

        Raises:
            OtterError: it cannot be imported, or the adapter or a setting does not fit.
        """
        return load_part(self.maker)(model, adapter_name, settings)


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
            ("weight", "top_k", "min_p"),
            "otterlm.decoding.guidance:make",
        ),
        InterventionType(
            "search",
            Capability.PREFIX,
            "custom_generate",
            ("weight", "top_k", "min_p", "temperature"),
            "otterlm.decoding.search:make",
            arguments=_undivided,
        ),
        InterventionType(
            "best-of-n",
            Capability.PREFIX,
            "custom_generate",
            ("weight", "top_k"),
            "otterlm.decoding.best_of_n:make",
            samples=True,
        ),
        InterventionType(
            "rejection",
            Capability.PREFIX,
            "custom_generate",
            ("threshold",),
            "otterlm.decoding.rejection:make",
            samples=True,
        ),
        InterventionType(
            "stop", Capability.PREFIX, "stopping_criteria", ("threshold", "patience"), "otterlm.decoding.stop:make"
        ),
        InterventionType(
            "guard",
            Capability.CLASSES,
            "stopping_criteria",
            ("alarm", "hits", "window"),
            "otterlm.decoding.guard_stop:make",
        ),
        InterventionType(
            "rollback",
            Capability.CLASSES | Capability.ADDS,
            "custom_generate",
            ("weight", "back", "alarm", "hits", "window"),
            "otterlm.decoding.rollback:make",
        ),
        InterventionType(
            "contrast", Capability.REPLACES, "logits_processor", ("alpha", "top_p"), "otterlm.decoding.contrast:make"
        ),
        InterventionType(
            "drafts",
            Capability.DRAFTS,
            "custom_generate",
            ("drafts", "confidence"),
            "otterlm.decoding.speculative:make",
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


def refuse_unused(
    requested: Iterable[str],
    used: Iterable[InterventionType],
    offered: Iterable[InterventionType],
    spell: Callable[[str], str] = str,
) -> None:
    """Refuses settings that nothing takes.

    Args:
        requested: fields of `InterventionSettings` that somebody chose values for.
        used: the interventions that are used.
        offered: those that could be used instead.
        spell: makes a field's name what it was asked for by.

    Raises:
        OtterError: no intervention that is used takes one of them.
    """
    used, offered = list(used), list(offered)
    for name in requested:
        if not any(name in use.takes for use in used):
            takers = " or ".join(each.name for each in offered if name in each.takes) or "nothing"
            here = f"only {' and '.join(use.name for use in used)}" if used else "no intervention"
            verb = "are" if len(used) > 1 else "is"
            raise OtterError(f"{spell(name)} goes with {takers}, but here {here} {verb} used: leave it out")

"""Remembers what steps of drafting took in this process: other work on a machine begins and ends."""

from dataclasses import dataclass
from weakref import WeakKeyDictionary

from otterlm.decoding.pass_costs import PassCosts
from otterlm.model import OtterModel

FORGETTING, OUTLIER = 0.15, 3.0
"""The latest step has this weight in what is known, and counts as no more than so many times the steps before it."""
UNSEEN = 0.03
"""It has this weight in what is known of the passes of the other kind."""
SHORTEST = 8
"""So many steps follow without drafts where they do not pay for the first time."""


@dataclass(slots=True)
class Experience:
    """The experience says how much longer steps take now than they were measured to, and whether drafts paid lately.

    Attributes:
        one: how many times as long a step with a pass of one token takes.
        several: the same of passes of several.
        rest: how many steps without drafts follow where they do not pay.
    """

    one: float = 1.0
    several: float = 1.0
    rest: int = SHORTEST

    def learn(self, tokens: int, expected: float, seconds: float) -> None:
        """Learns from a step with a pass of so many tokens. One step that was held up counts little.

        What passes of the other kind take now is not known, and slowly becomes what this kind says.
        """
        name, other = ("one", "several") if tokens == 1 else ("several", "one")
        known, unseen = getattr(self, name), getattr(self, other)
        ratio = min(max(seconds / expected, known / OUTLIER), known * OUTLIER)
        now = known + FORGETTING * (ratio - known)
        setattr(self, name, now)
        setattr(self, other, unseen + UNSEEN * (now - unseen))


def experience(model: OtterModel, costs: PassCosts) -> Experience:
    """Returns what this process has learned of the steps of a model."""
    return _known.setdefault(model, {}).setdefault(costs, Experience())


_known: WeakKeyDictionary[OtterModel, dict[PassCosts, Experience]] = WeakKeyDictionary()

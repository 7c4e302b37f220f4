"""Decides when it is worth the time to look for drafts."""

from otterlm.decoding.draft_policy import LONGEST, TRIAL
from otterlm.decoding.experience import SHORTEST


class Gate:
    """The gate is open while what is behind it gains time, as `otterlm.decoding.draft_policy` rests.

    Where a trial of `TRIAL` steps has gained nothing, it is closed for `SHORTEST` steps; each time for twice as many,
    and at most for `LONGEST`.
    """

    def __init__(self) -> None:
        self._gains: list[float] = []
        self._left = 0  # steps until it opens
        self._rest = SHORTEST

    def passes(self) -> bool:
        """Says whether a step may pass. It is asked once a step."""
        if self._left:
            self._left -= 1
            return False
        return True

    def learn(self, gain: float) -> None:
        """Learns what a step has gained that passed, as a share of the tokens per second without it."""
        self._gains.append(gain)
        if len(self._gains) < TRIAL:
            return
        if sum(self._gains) > 0:
            self._rest = SHORTEST
        else:
            self._left, self._rest = self._rest, min(LONGEST, 2 * self._rest)
        self._gains = []

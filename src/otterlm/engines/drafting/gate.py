"""Decides when it is worth the time to look for drafts."""

SHARE = 0.02
"""So much of the time of a request that is alone may go into looks that gain nothing."""
FIRST, MOST = 2.0, 4.0
"""Its looks may lose as many steps without drafts before anything is known; later, as many of what they gained."""


class Gate:
    """The gate is open while what is behind it has gained as much time as it took, but for a small share of all time.

    Its account is in steps without drafts. Each step adds the share, and what is behind the gate adds what it gained.
    Below 0 the gate is closed. So a loss is followed by a rest in proportion to it, and a rest by one step of trial.

    Args:
        caution: in batches the share and the account are so many times smaller, for there drafts rarely pay.
    """

    def __init__(self, caution: float = 1.0) -> None:
        self._share, self._most = SHARE / caution, MOST / caution
        self._account = FIRST / caution

    def passes(self) -> bool:
        """Says whether a step may pass. It is asked once a step."""
        self._add(self._share)
        return self._account >= 0

    def learn(self, gain: float) -> None:
        """Learns what a step that passed has gained, in steps without drafts; below 0 where it lost."""
        self._add(gain)

    def _add(self, gain: float) -> None:
        self._account = min(self._most, self._account + gain)

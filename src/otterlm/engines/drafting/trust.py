"""Learns how often guesses come true, by how sure the heads are of them: their chances are no promise."""

from collections.abc import Sequence

LEVELS = 10
"""Guesses are alike whose chances lie in the same tenth."""
PRIOR = 8
"""A chance counts as if so many guesses of its kind had been as often right as it says."""
LIMIT = 512
"""So many guesses of a kind are remembered; then each counts half, so that new texts can change what is known."""


class Trust:
    """The trust is in the guesses of each head. A guess that follows a wrong one teaches nothing.

    Args:
        accuracy: of each head, how often its best guess was right when all before it were, as measured in training.
    """

    def __init__(self, accuracy: Sequence[float]) -> None:
        self._seen = [[0.0] * LEVELS for _ in accuracy]
        self._right = [[0.0] * LEVELS for _ in accuracy]
        self._accuracy = accuracy

    def chance(self, head: int, sure: float) -> float:
        """Returns how likely a guess is right if all before it are.

        Args:
            head: from 0.
            sure: the chance that the guess had when it was made.
        """
        level = _level(sure)
        return (self._right[head][level] + PRIOR * sure) / (self._seen[head][level] + PRIOR)

    def typical(self, head: int) -> float:
        """Returns how likely a guess of a head is right of which nothing else is known."""
        right, seen = sum(self._right[head]), sum(self._seen[head])
        return (right + PRIOR * self._accuracy[head]) / (seen + PRIOR)

    def learn(self, head: int, sure: float, right: bool) -> None:
        """Learns whether a guess was right. All before it were."""
        level = _level(sure)
        self._seen[head][level] += 1
        self._right[head][level] += right
        if self._seen[head][level] >= LIMIT:
            self._seen[head][level] /= 2
            self._right[head][level] /= 2


def _level(sure: float) -> int:
    return min(LEVELS - 1, int(sure * LEVELS))

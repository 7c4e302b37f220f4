"""Says what an engine's worker reads of an adapter beside a token: a row of numbers. It needs no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from otterlm.engines.requests import Served

Row = Sequence[float]
Readings = Mapping[str, Sequence[Row]]
"""The rows of some tokens are by adapter. A token's row is of the text that it was chosen after."""


@dataclass(frozen=True, slots=True)
class Layout:
    """A layout says what the numbers of a row are: the reward, the probability of each label, and that of each passage.

    Attributes:
        rewards: how many rewards there are, one or none.
        labels: names of the labels.
        spans: names of the labels whose passages are marked.
    """

    rewards: int
    labels: tuple[str, ...]
    spans: tuple[str, ...]

    @classmethod
    def of(cls, served: Served, name: str) -> Self:
        """Makes the layout of an adapter."""
        config = served.guards.get(name)
        labels, spans = (config.labels, config.spans) if config else ((), ())
        return cls(int(name in served.numbers), labels, spans)

    def probabilities(self, row: Row) -> dict[str, float]:
        """Returns the probability of each label."""
        return dict(zip(self.labels, row[self.rewards :], strict=False))

    def by_label(self, rows: Sequence[Row]) -> dict[str, list[float]]:
        """Returns the probabilities of each label, of several tokens."""
        return self._columns(rows, self.labels, self.rewards)

    def by_span(self, rows: Sequence[Row]) -> dict[str, list[float]]:
        """Returns the probabilities of being inside a passage of each label, of several tokens."""
        return self._columns(rows, self.spans, self.rewards + len(self.labels))

    def _columns(self, rows: Sequence[Row], names: tuple[str, ...], first: int) -> dict[str, list[float]]:
        return {name: [row[first + index] for row in rows] for index, name in enumerate(names)}

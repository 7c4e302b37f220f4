"""Learns from an engine's own steps what a step costs that verifies some drafts.

The cost is a line: a step without drafts, a part that every step with drafts pays (other kernels, the rejection
sampler), and a part for each draft. Both parts are shares of the step without drafts, so that they stay right while
the machine is slower for a while.
"""

from dataclasses import dataclass, replace

from otterlm.decoding.experience import FORGETTING, OUTLIER, UNSEEN

SEEN = 2
"""So many steps without drafts must have been timed before drafts are compared with them."""
STALE = 64
"""After so many steps with drafts one is made without."""
TOKENS = 64
"""Where nothing was measured, a step of no tokens counts as much as so many tokens. That is hopeful, so that drafts are
tried."""
LENT = 4
"""What is known of another number of requests counts as so many steps."""
RECENT, IDLE = 0.97, 0.99
"""What was learned of steps with drafts counts less after each: of them, and of those without. So after some hundred
steps without drafts they are tried again."""


@dataclass(slots=True)
class _Line:
    """The line is fitted by least squares, with a guess that counts as a few steps.

    Attributes:
        start, slope: the guess: shares of a step without drafts, for all drafts and for each.
    """

    start: float
    slope: float
    weight: float = 0.0
    n: float = 0.0
    nn: float = 0.0
    y: float = 0.0
    ny: float = 0.0

    def forget(self, share: float) -> None:
        for name in ("weight", "n", "nn", "y", "ny"):
            setattr(self, name, share * getattr(self, name))

    def learn(self, drafts: int, more: float) -> None:
        self.forget(RECENT)
        self.weight += 1
        self.n += drafts
        self.nn += drafts * drafts
        self.y += more
        self.ny += drafts * more

    def fit(self) -> tuple[float, float]:
        """Returns start and slope, neither below 0."""
        a, b, c = self.weight + 1, self.n, self.nn + 1  # the guess counts as one step for each of the two
        y, ny = self.y + self.start, self.ny + self.slope
        start = max(0.0, (c * y - b * ny) / (a * c - b * b))
        return start, max(0.0, (ny - b * start) / c)


@dataclass(slots=True)
class _Rows:
    """Holds what is known of steps of so many requests.

    Attributes:
        line: of those with drafts.
        plain: the seconds of those without.
        seen: how many of these there were.
        since: how many with drafts came after the last of them.
    """

    line: _Line
    plain: float = 0.0
    seen: int = 0
    since: int = 0


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of a step, in seconds, is that of one without drafts and the line's.

    Attributes:
        plain: without drafts.
        start, slope: what comes to it for all drafts together, and for each.
        spent: what it took to make the drafts.
    """

    plain: float
    start: float
    slope: float
    spent: float = 0.0

    def __call__(self, drafts: int) -> float:
        """Returns the seconds of a step with so many drafts."""
        return self.plain + self.spent + (self.start + self.slope * drafts if drafts else 0.0)

    def after(self, seconds: float) -> "Cost":
        """Returns the cost of a step whose drafts took so many seconds to make."""
        return replace(self, spent=seconds)


class StepCosts:
    """The costs are learned from an engine's steps, separately for each number of requests.

    A number that is new begins with the line of the nearest one.
    """

    def __init__(self) -> None:
        self._rows: dict[int, _Rows] = {}

    def wants_plain(self, rows: int) -> bool:
        """Says whether the next step of so many requests must be one without drafts."""
        known = self._rows.get(rows)
        return known is None or known.seen < SEEN or known.since >= STALE

    def of(self, rows: int) -> Cost:
        """Returns the cost of a step. Steps without drafts must have been timed, see `wants_plain`."""
        known = self._rows[rows]
        start, slope = known.line.fit()
        return Cost(known.plain, known.plain * start, known.plain * slope)

    def learn(self, rows: int, drafts: int, seconds: float) -> None:
        """Learns from a step that verified so many drafts of all its requests. One that was held up counts little."""
        known = self._rows.get(rows) or self._enter(rows)
        if not drafts:
            known.since = 0
            known.line.forget(IDLE)
            share = max(FORGETTING, 1 / (known.seen + 1))  # the mean of the first ones
            limit = OUTLIER * known.plain if known.seen else seconds
            known.plain += share * (min(seconds, limit) - known.plain)
            known.seen += 1
        elif known.seen:
            known.since += 1
            expected = self.of(rows)(drafts)
            seconds = min(max(seconds, expected / OUTLIER), OUTLIER * expected)
            known.line.learn(drafts, seconds / known.plain - 1)
            known.plain *= 1 + UNSEEN * (seconds / expected - 1)  # the machine may be slower now

    def _enter(self, rows: int) -> _Rows:
        line = _Line(0.0, 1 / (rows + TOKENS))
        if self._rows:
            nearest = min(self._rows, key=lambda other: abs(other - rows))
            start, slope = self._rows[nearest].line.fit()
            slope *= (nearest + TOKENS) / (rows + TOKENS)
            for step in range(LENT):
                drafts = 1 + step * rows // LENT
                line.learn(drafts, start + slope * drafts)
        self._rows[rows] = known = _Rows(line)
        return known

"""Drafts for all requests of an engine: what is looked for in each step, and what of it is verified."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from otterlm.decoding.experience import FORGETTING, OUTLIER
from otterlm.engines.drafting.choice import Choice, choose, weigh
from otterlm.engines.drafting.gate import Gate
from otterlm.engines.drafting.guesses import Chains, Copied, together
from otterlm.engines.drafting.step_costs import Cost, StepCosts
from otterlm.engines.drafting.text import Running, Text
from otterlm.engines.drafting.trust import Trust
from otterlm.signals.draft.head import Drafter

SURE = 0.8
"""Where every text has a copy with this chance, the heads are not guessing."""


class Duration:
    """The duration is a running mean. What took much longer than usual, as the first time, counts little."""

    seconds = 0.0

    def learn(self, seconds: float) -> None:
        """Learns how long it took once more."""
        known = min(self.seconds or seconds, OUTLIER * seconds)
        self.seconds = known + FORGETTING * (min(seconds, OUTLIER * known) - known)


@dataclass(slots=True)
class _Size:
    """Holds what is known of batches of about so many requests.

    Attributes:
        drafts: the gate of all drafts.
        heads: the gate of those of the heads.
        copying, level: how long the lookup takes, and a level of guesses.
    """

    drafts: Gate
    heads: Gate
    copying: Duration = field(default_factory=Duration)
    level: Duration = field(default_factory=Duration)


@dataclass(slots=True)
class _Look:
    """A look for drafts is judged after the step that verified them.

    Attributes:
        size, rows: of the batch.
        heads: they were asked.
        copying: what the lookup alone was expected to gain, in steps without drafts.
        spent: how long it took.
    """

    size: _Size
    rows: int
    heads: bool
    copying: float
    spent: float = 0.0


class Drafting:
    """The drafting of an engine learns what pays from the engine's own steps.

    Args:
        accuracy: of each head, how often its best guess was right when all before it were, as measured in training.
        most: a request has at most so many drafts.
        clock: returns seconds.
    """

    def __init__(self, accuracy: Sequence[float], most: int, clock: Callable[[], float] = time.perf_counter) -> None:
        self._trust = Trust(accuracy)
        self._most = most
        self._clock = clock
        self._costs = StepCosts()
        self._sizes: dict[int, _Size] = {}
        self._texts: dict[str, Text] = {}  # of requests that were looked at
        self._names: set[str] = set()  # of the latest step
        self._look: _Look | None = None  # of the latest call
        self._begun = self._spent = 0.0  # when it began, and how long it took

    def propose(self, running: Sequence[Running], heads: Callable[[], Drafter], whole: bool = True) -> list[list[int]]:
        """Returns the drafts of each request. It is called after every step.

        Args:
            running: the requests that the step gave tokens.
            heads: returns their drafter, with a position for each.
            whole: the step had the last token of each of them, and the drafts that it verified, and nothing else.
        """
        now = self._clock()
        names = {request.name for request in running}
        if whole and names and names <= self._names:  # the engine did not wait for requests
            verified = sum(request.verified for request in running)
            self._costs.learn(len(running), verified, now - self._begun - self._spent)
        self._names, self._texts = names, {name: text for name, text in self._texts.items() if name in names}
        for request in running:
            if text := self._texts.get(request.name):
                text.check(request.tokens[-request.new :].tolist(), self._trust)
        if self._look:
            self._judge(self._look, running)
            self._look = None
        drafts = self._drafts(running, heads)
        self._begun, self._spent = now, self._clock() - now
        if self._look:
            self._look.spent = self._spent
        return drafts

    def _judge(self, look: _Look, running: Sequence[Running]) -> None:
        """Tells the gates what a look has gained: what was right, less what it took to find and to verify drafts."""
        cost = self._costs.of(look.rows)
        right = sum(request.new - 1 for request in running)
        took = cost.after(look.spent)(sum(request.verified for request in running))
        gain = right / look.rows - (took / cost(0) - 1)
        look.size.drafts.learn(gain)
        if look.heads:
            look.size.heads.learn(gain - look.copying)

    def _drafts(self, running: Sequence[Running], heads: Callable[[], Drafter]) -> list[list[int]]:
        none: list[list[int]] = [[] for _ in running]
        if not any(request.drafted for request in running) or self._costs.wants_plain(len(running)):
            return none
        number = len(running).bit_length()
        size = self._sizes.setdefault(number, _Size(Gate(number), Gate(number)))
        guessing = size.heads.passes()
        if not size.drafts.passes():
            return none
        cost = self._costs.of(len(running))
        for request in running:
            self._texts.setdefault(request.name, Text())
        copied = self._copy(running, size)
        tokens, choice = self._choose(running, copied, cost, size, heads if guessing else None)
        return [row[:count] for row, count in zip(tokens, choice.counts, strict=True)]

    def _copy(self, running: Sequence[Running], size: _Size) -> Copied:
        begun = self._clock()
        copied = [
            self._texts[request.name].copies(request.tokens, self._most) if request.drafted else []
            for request in running
        ]
        size.copying.learn(self._clock() - begun)
        return copied

    def _choose(
        self,
        running: Sequence[Running],
        copied: Copied,
        cost: Cost,
        size: _Size,
        heads: Callable[[], Drafter] | None,
    ) -> tuple[list[list[int]], Choice]:
        """Returns guesses at the next tokens of each request, and how many of them are verified."""
        copies = [[token for token, _ in row] for row in copied]
        chances = [together(chance for _, chance in row) for row in copied]
        weights = weigh([self._texts[request.name].ahead for request in running])
        cheap = choose(chances, cost.after(size.copying.seconds), weights)
        self._look = look = _Look(size, len(running), False, cheap.rate * cost(0) / len(running) - 1)
        if heads is None or all(row and row[0] >= SURE for row in chances):
            return copies, cheap
        look.heads = True
        chains = self._grow(running, copied, cost, size, heads(), weights)
        spent = cost.after(size.copying.seconds + chains.depth * size.level.seconds)
        guessed = choose(_of_drafted(running, chains.chances), spent, weights)
        copying = choose(chances, spent, weights)  # what the heads took is spent
        best = max(guessed, copying, key=lambda choice: choice.rate)
        tokens = [[guess.token for guess in guesses] for guesses in chains.guesses]
        return (tokens if best is guessed else copies), best

    def _grow(
        self,
        running: Sequence[Running],
        copied: Copied,
        cost: Cost,
        size: _Size,
        drafter: Drafter,
        weights: Sequence[float],
    ) -> Chains:
        """Grows chains of guesses, until one more level is not worth its time."""
        begun = self._clock()
        texts = [self._texts[request.name] for request in running]
        tokens = [int(request.tokens[-1]) for request in running]
        chains = Chains(drafter, tokens, copied, texts, self._trust, self._most)
        while chains.grows:
            if chains.depth:
                spent = size.copying.seconds + chains.depth * size.level.seconds
                now = choose(_of_drafted(running, chains.chances), cost.after(spent), weights)
                hoped = choose(_of_drafted(running, chains.hoped), cost.after(spent + size.level.seconds), weights)
                if hoped.rate <= now.rate:
                    break
            chains.grow()
        for index, text in enumerate(texts):
            text.guess(chains.of_heads(index))
        size.level.learn((self._clock() - begun) / chains.depth)
        return chains


def _of_drafted(running: Sequence[Running], chances: Sequence[Sequence[float]]) -> list[Sequence[float]]:
    return [row if request.drafted else [] for request, row in zip(running, chances, strict=True)]

"""Chooses the drafts of a step: as many as pay, by what passes cost and by what the heads are sure of.

A step's worth is its expected tokens per second. The best tree of n drafts has the n likeliest nodes (EAGLE-2, arXiv
2406.16858), and the chance of a node is that it and all before it are right.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Protocol

from torch import Tensor

from otterlm.decoding.draft_growth import Growth, propose
from otterlm.decoding.draft_tree import DraftTree
from otterlm.decoding.experience import SHORTEST, Experience
from otterlm.decoding.lookup import Copies
from otterlm.decoding.pass_costs import MOST, PassCosts
from otterlm.signals.draft.head import Drafter

TRUST = 4.0
"""The heads' chances count as if so many drafts had been as often right as they say."""
TRIAL = 4
"""So many steps in a row decide whether drafts are worth their cost."""
LONGEST = 64
"""Where they are not, `SHORTEST` steps are made without them; each time twice as many, and at most so many."""
POOL = 24
"""The drafts of a step are chosen among so many."""


class DraftPolicy(Protocol):
    """A policy decides what each step drafts.

    Attributes:
        tree: all nodes that it may draft.
        rests: whether the next step is one of the base alone.
    """

    tree: DraftTree
    rests: bool

    def propose(
        self, drafter: Drafter, state: Tensor, root: Tensor, running: Tensor, copies: Copies | None = None
    ) -> tuple[Tensor, DraftTree]:
        """Drafts after a decided token.

        Args:
            drafter, state, root, copies: see `otterlm.decoding.draft_growth.Growth`.
            running: `[B]` bool, the rows that have not ended.

        Returns:
            `[B, N]` token ids, and the tree of these N nodes.
        """

    def learn(self, accepted: Sequence[int], seconds: float) -> None:
        """Learns from a step, after each: how many drafts of each running row were right, and how long it took."""


class FixedDrafts:
    """The policy is that every step verifies the same tree of the heads' guesses, or its nodes that have a chance.

    Args:
        tree: the nodes.
        confidence: see `otterlm.decoding.draft_growth.propose`.
    """

    rests = False

    def __init__(self, tree: DraftTree, confidence: float) -> None:
        self.tree = tree
        self._confidence = confidence

    def propose(
        self, drafter: Drafter, state: Tensor, root: Tensor, running: Tensor, copies: Copies | None = None
    ) -> tuple[Tensor, DraftTree]:
        """Drafts, see `DraftPolicy`."""
        return propose(drafter, state, root, self.tree, self._confidence)

    def learn(self, accepted: Sequence[int], seconds: float) -> None:
        """Learns nothing."""


class LikeliestDrafts:
    """The policy is that every step verifies so many drafts, the likeliest (EAGLE-2, arXiv 2406.16858).

    Args:
        drafts: how many at most.
        accuracy, heads, guesses, confidence: see `DraftsThatPay`.
    """

    rests = False

    def __init__(
        self, drafts: int, accuracy: Sequence[Sequence[float]], heads: int, guesses: int, confidence: float = 0.0
    ) -> None:
        self.tree = pool(accuracy, heads, guesses, drafts)
        self._drafts = drafts
        self._confidence = confidence

    def propose(
        self, drafter: Drafter, state: Tensor, root: Tensor, running: Tensor, copies: Copies | None = None
    ) -> tuple[Tensor, DraftTree]:
        """Drafts, see `DraftPolicy`."""
        growth = Growth(drafter, state, root, self.tree, copies)
        chances: dict[int, float] = {}
        chosen: list[int] = []
        while growth.parents:
            # Of what follows a node nothing is likelier than the node.
            least = chances[chosen[-1]] if len(chosen) == self._drafts else 0.0
            growth.grow(max(self._confidence, least))
            chances = {node: float(chance[running].mean()) for node, chance in growth.chances.items() if node}
            chosen = sorted(chances, key=lambda node: (-chances[node], node))[: self._drafts]
        return growth.only([0, *chosen])

    def learn(self, accepted: Sequence[int], seconds: float) -> None:
        """Learns nothing."""


def pool(accuracy: Sequence[Sequence[float]], heads: int, guesses: int, drafts: int) -> DraftTree:
    """Returns the tree that the drafts of a step are chosen from: what is likely by the heads, and a longer chain.

    Args:
        accuracy, heads, guesses: see `DraftsThatPay`.
        drafts: at most so many of its nodes are verified.
    """
    likely = [row[:guesses] for row in accuracy]
    tree = DraftTree.best(likely, max(POOL, drafts)) if likely else DraftTree.chain(min(heads, drafts))
    return tree.longer(drafts)


class DraftsThatPay:
    """The policy is that a step verifies the drafts with the most expected tokens per second; none, where none pays.

    Where drafts are worth less than their cost for a while, there are steps of the base alone, then another trial.

    Args:
        accuracy: of each head, how often its best, second best, ... guess is right when all before it were; empty where
            it was not measured.
        heads: how many tokens can be drafted one after the other.
        guesses: how many tokens can be drafted.
        costs: of passes on this machine.
        experience: of earlier steps; it learns from every step.
        confidence: drafts with a smaller chance are left out in any case.
    """

    def __init__(
        self,
        accuracy: Sequence[Sequence[float]],
        heads: int,
        guesses: int,
        costs: PassCosts,
        experience: Experience,
        confidence: float = 0.0,
    ) -> None:
        self.tree = pool(accuracy, heads, guesses, MOST - 1)
        self.rests = False
        self._accuracy = [row[0] for row in accuracy] or [1.0] * heads
        self._costs = costs
        self._experience = experience
        self._confidence = confidence
        self._expected = self._accepted = TRUST
        self._step = 0.0  # accepted drafts that the current step expects, by the heads
        self._size, self._depth = 1, 0  # of its tree
        self._since = 0  # steps since a pass of one token
        self._gains: list[float] = []
        self._left = 0  # steps without drafts to come

    @property
    def scale(self) -> float:
        """Returns how many drafts were right for each that the heads expected to be."""
        return self._accepted / self._expected

    def propose(
        self, drafter: Drafter, state: Tensor, root: Tensor, running: Tensor, copies: Copies | None = None
    ) -> tuple[Tensor, DraftTree]:
        """Drafts, see `DraftPolicy`."""
        growth = Growth(drafter, state, root, self.tree, copies)
        chances: dict[int, float] = {}
        while True:
            count, rate = self._best(list(chances.values()), growth.depth)
            hoped = self._hoped(growth, chances)
            if not hoped or (chances and self._best([*chances.values(), *hoped], growth.depth + 1)[1] <= rate):
                break
            growth.grow(max(self._confidence, self._least(rate)))
            chances = {node: float(chance[running].mean()) for node, chance in growth.chances.items() if node}
        chosen = sorted(chances, key=lambda node: (-chances[node], node))[:count]
        self._step = sum(chances[node] for node in chosen)
        self._size, self._depth = 1 + count, growth.depth
        self._gains.append(1 + self.scale * self._step - self._cost(count, growth.depth) / self._plain)
        return growth.only([0, *chosen])

    @property
    def _plain(self) -> float:
        return self._experience.one * self._costs.plain

    def _cost(self, drafts: int, depth: int) -> float:
        """Returns the seconds of a step with so many drafts, of trees of this depth."""
        return (self._experience.several if drafts else self._experience.one) * self._measured(drafts, depth)

    def _measured(self, drafts: int, depth: int) -> float:
        return self._costs.passes[drafts] + depth * self._costs.head

    def _best(self, chances: Sequence[float], depth: int) -> tuple[int, float]:
        """Returns how many of the likeliest drafts pay best, and the tokens per second with them."""
        ordered = sorted(chances, reverse=True)[: MOST - 1]
        tokens = [1.0]
        for chance in ordered:
            tokens.append(tokens[-1] + min(1.0, self.scale * chance))
        rates = [expected / self._cost(drafts, depth) for drafts, expected in enumerate(tokens)]
        best = max(range(len(rates)), key=rates.__getitem__)
        return best, rates[best]

    def _hoped(self, growth: Growth, chances: dict[int, float]) -> list[float]:
        """Returns the chances that the best guesses of the next level may have.

        A head is as often right as it was measured to be, or as sure as the one before it is now. A copy has the
        lookup's chance.
        """
        hoped = []
        for node in growth.parents:
            chance = chances.get(node, 1.0)
            before = chances.get(self.tree.parents[node], 1.0)
            sure = chance / before if node and before else 0.0
            head = max(self._accuracy[growth.depth], sure) if growth.depth < len(self._accuracy) else 0.0
            copied = growth.copied(node)
            hoped.append(chance * (copied + (1 - copied) * head))
        return hoped

    def _least(self, rate: float) -> float:
        """Returns the chance below which one more draft never pays, whatever else is verified."""
        passes = self._costs.passes
        step = min(after - before for before, after in pairwise(passes))
        return max(0.0, min(0.99, rate * self._experience.several * step / max(self.scale, 1e-6)))

    def learn(self, accepted: Sequence[int], seconds: float) -> None:
        """Learns whether the heads are as often right as they say, and whether drafts pay. See `DraftPolicy`."""
        if self.rests:
            self._experience.learn(1, self._costs.plain, seconds)
            self._since = 0
            self._left -= 1
            self.rests = self._left > 0
            return
        self._experience.learn(self._size, self._measured(self._size - 1, self._depth), seconds)
        self._since = self._since + 1 if self._size > 1 else 0
        if self._since >= LONGEST:  # what a pass of one token costs now must be known
            self.rests, self._left = True, 1
        self._expected += self._step
        self._accepted += sum(accepted) / max(1, len(accepted))
        if len(self._gains) < TRIAL:
            return
        pays = sum(self._gains) > 0
        self._gains = []
        if pays:
            self._experience.rest = SHORTEST
            return
        self.rests, self._left = True, self._experience.rest
        self._experience.rest = min(LONGEST, 2 * self._left)

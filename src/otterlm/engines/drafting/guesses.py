"""Makes a chain of guesses for each request of a step, from the draft heads and the lookup."""

from collections.abc import Iterable, Sequence
from itertools import accumulate
from operator import mul

from otterlm.decoding.draft_growth import Growth
from otterlm.decoding.draft_tree import DraftTree
from otterlm.decoding.lookup import Copies
from otterlm.engines.drafting.text import Guess, Text
from otterlm.engines.drafting.trust import Trust
from otterlm.signals.draft.head import Drafter

Copied = Sequence[Sequence[tuple[int, float]]]
"""What the lookup copies for each request, see `otterlm.decoding.lookup.Lookup.following`."""


class Chains:
    """The chains have one guess more for each request with every level.

    Args:
        drafter: makes the guesses, with one position for each request.
        tokens: the last token of each request.
        copied: what the lookup copies.
        texts: of the requests.
        trust: in the heads.
        most: a chain has at most so many guesses.
    """

    def __init__(
        self, drafter: Drafter, tokens: Sequence[int], copied: Copied, texts: Sequence[Text], trust: Trust, most: int
    ) -> None:
        state = drafter.state[:, 0]  # [B, d + d']
        root = drafter.vocabulary.new_tensor(tokens)
        self.guesses: list[list[Guess]] = [[] for _ in tokens]
        self._growth = Growth(drafter, state, root, DraftTree.chain(most), Copies.of(copied, most, state.device))
        self._heads = drafter.heads
        self._copied, self._texts, self._trust = copied, texts, trust

    @property
    def depth(self) -> int:
        """Returns how many levels there are."""
        return self._growth.depth

    @property
    def grows(self) -> bool:
        """Says whether there can be one more level."""
        return bool(self._growth.parents)

    def grow(self) -> None:
        """Adds a level."""
        growth, head = self._growth, self.depth
        growth.grow()
        before, now = growth.chances[head], growth.chances[self.depth]
        sures = (now / before.clamp_min(1e-9)).tolist()
        tokens = growth.only(range(self.depth + 1))[0][:, -1].tolist()
        for guesses, text, token, sure in zip(self.guesses, self._texts, tokens, sures, strict=True):
            trusted = head < self._heads
            chance = min(1.0, text.scale * self._trust.chance(head, sure)) if trusted else sure
            guesses.append(Guess(token, sure, chance))

    def of_heads(self, request: int) -> list[Guess]:
        """Returns the guesses of a request in which heads had a part."""
        return self.guesses[request][: self._heads]

    @property
    def chances(self) -> list[list[float]]:
        """Returns the chance of each guess of each request that it and all before it are right."""
        return [together(guess.chance for guess in guesses) for guesses in self.guesses]

    @property
    def hoped(self) -> list[list[float]]:
        """Returns the chances with one more level, as they may be.

        A head is as often right as its guesses were so far, or as sure as the one before it is now. A copy has the
        lookup's chance.
        """
        depth, hoped = self.depth, []
        for chances, guesses, copied in zip(self.chances, self.guesses, self._copied, strict=True):
            path = [token for token, _ in copied[: depth + 1]]
            copies = len(path) > depth and path[:depth] == [guess.token for guess in guesses]
            copy = copied[depth][1] if copies else 0.0
            sure = guesses[-1].chance if guesses else 0.0
            head = max(self._trust.typical(depth), sure) if depth < self._heads else 0.0
            hoped.append([*chances, (chances[-1] if chances else 1.0) * (copy + (1 - copy) * head)])
        return hoped


def together(chances: Iterable[float]) -> list[float]:
    """Returns the chance of each of several tokens that it and all before it are right."""
    return list(accumulate(chances, mul))

"""Follows the text of one request: what it repeats, and which guesses came true."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from otterlm.decoding.draft_policy import TRUST
from otterlm.decoding.lookup import Lookup
from otterlm.engines.drafting.trust import Trust

READ = 1024
"""The lookup begins so many tokens before the end of a text: it remembers each token several times."""


class Running(NamedTuple):
    """A running request has its next token.

    Attributes:
        name: of the request.
        tokens: its text, `[T]`, an array of numpy.
        new: how many of them the last step gave.
        verified: how many drafts of it the last step verified.
        drafted: whether it may have drafts in the next step.
    """

    name: str
    tokens: Any
    new: int
    verified: int
    drafted: bool = True


class Guess(NamedTuple):
    """A guess is a token that heads and lookup expect.

    Attributes:
        token: its id.
        sure: the chance that it was made with, if all before it are right.
        chance: the same as the engine's texts have shown it.
    """

    token: int
    sure: float
    chance: float


class Text:
    """The text belongs to one request.

    Attributes:
        ahead: how many drafts of it were right.
    """

    def __init__(self) -> None:
        self.ahead = 0
        self._lookup: Lookup | None = None
        self._read = 0
        self._guesses: Sequence[Guess] = ()
        self._expected = self._right = TRUST

    @property
    def scale(self) -> float:
        """Returns how many guesses were right for each that was expected to be: steered and sampled texts differ."""
        return self._right / self._expected

    def copies(self, tokens: Any, count: int) -> list[tuple[int, float]]:
        """Reads the tokens that are new, and returns what follows if the text repeats itself, see `Lookup`."""
        if self._lookup is None:
            self._lookup = Lookup(tokens[-READ:].tolist())
        else:
            for token in tokens[self._read :].tolist():
                self._lookup.append(token)
        self._read = len(tokens)
        return self._lookup.following(count)

    def guess(self, guesses: Sequence[Guess]) -> None:
        """Stores the heads' guesses at the next tokens, whether they are verified or not."""
        self._guesses = guesses

    def check(self, new: Sequence[int], trust: Trust) -> None:
        """Learns from the tokens that came after the guesses were made: all but the last one were verified drafts."""
        self.ahead += len(new) - 1
        for head, (guess, token) in enumerate(zip(self._guesses, new, strict=False)):
            right = guess.token == token
            trust.learn(head, guess.sure, right)
            self._expected += guess.chance
            self._right += right
            if not right:
                break
        self._guesses = ()

"""Defines the draft signal's configuration."""

from dataclasses import dataclass
from typing import ClassVar

from otterlm.errors import OtterError
from otterlm.settings import check_settings, setting
from otterlm.signals.base import Capability, SignalConfig

MAX_GUESSES = 16
"""At most so many guesses of one draft head are measured or tried."""


@dataclass(frozen=True, slots=True)
class DraftConfig(SignalConfig):
    """The draft signal predicts the tokens after the next one.

    Attributes:
        heads: how many tokens are drafted, one after the other.
        width: hidden units of each head.
        rank: size of the codes that the vocabulary is scored with.
        vocabulary_size: how many tokens can be drafted, those that the base generates most often.
        sequential: whether a head sees the tokens between the state and its guess, and the code of the head before.
        shared: whether all levels have one head, which reads the code that it made and the token that it guessed (as in
            EAGLE, arXiv 2401.15077), and so can be used for more levels; else each level has a head of its own.
        accuracy: of each head, how often its best, second best, ... guess is right when all before it were, as measured
            after training; the draft tree is shaped by it. Empty: not measured.
    """

    type: ClassVar[str] = "draft"
    heads: int = setting(4, "Tokens drafted one after the other.", minimum=1, option="--draft-heads")
    width: int = setting(512, "Hidden units of a draft head.", minimum=1, option="--draft-width")
    rank: int = setting(256, "Size of the codes that the vocabulary is scored with.", minimum=1, option="--draft-rank")
    vocabulary_size: int = setting(
        8192, "How many tokens, the most frequent, can be drafted.", minimum=1, option="--draft-vocabulary"
    )
    sequential: bool = setting(True, "Let a head see the tokens drafted before.")
    shared: bool = setting(False, "Let one head draft all tokens, one after the other.")
    accuracy: tuple[tuple[float, ...], ...] = ()

    def __post_init__(self) -> None:
        check_settings(self)
        for name in ("sequential", "shared"):
            if not isinstance(getattr(self, name), bool):
                raise OtterError(f"{name} must be true or false, got {getattr(self, name)!r}")
        if self.shared and not self.sequential:
            raise OtterError("a shared head needs the tokens drafted before: leave out sequential=False")
        object.__setattr__(self, "accuracy", tuple(tuple(row) for row in self.accuracy))
        for row in self.accuracy:
            if not row or len(row) > MAX_GUESSES or not all(isinstance(v, int | float) and 0 <= v <= 1 for v in row):
                raise OtterError(f"accuracy must hold, for each head, 1 to {MAX_GUESSES} shares from 0 to 1")
        if self.accuracy and len(self.accuracy) != self.heads:
            raise OtterError(f"accuracy is given for {len(self.accuracy)} heads, but there are {self.heads}")

    @property
    def capabilities(self) -> Capability:
        """Returns `DRAFTS` alone: drafts are no number beside a token."""
        return Capability.DRAFTS

    def limits(self, width: int, vocabulary: int) -> dict[str, tuple[int, int]]:
        """Returns the limits of the heads' sizes, see `SignalConfig`."""
        return {
            "heads": (self.heads, 16),
            "width": (self.width, 8 * width),
            "rank": (self.rank, width),
            "vocabulary_size": (self.vocabulary_size, vocabulary),
        }

    def derived_parameters(self, vocabulary: int) -> int:
        """Counts the table that codes are compared with."""
        return self.vocabulary_size * self.rank

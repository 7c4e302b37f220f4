"""Defines the parts of a signal: a configuration, a head, what one pass gives, and an objective.

`Capability` says what can be done with a signal. No code compares its name.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

if TYPE_CHECKING:  # so that listing signals and reading a configuration need no torch
    from torch import Tensor

    from otterlm.training.data.packing import Batch


class Capability(enum.Flag):
    """A capability is something that can be done with a signal.

    Attributes:
        BESIDE: every token has a number, which can be coloured and streamed (`Signal.beside`).
        PREFIX: that number is of the text that ends with the token: texts can be scored by it, responses ranked and
            watched (`PrefixSignal`).
        ADDS: it steers: a score of every next token is added to the token's logit (`AddedSignal`).
        REPLACES: it steers: two next-token distributions move the logits by their difference (`ReplacedSignal`).
        DRAFTS: it guesses at the tokens after the next one (`otterlm.signals.draft.head.Drafter`).
        CLASSES: probabilities of classes stand beside every token: a text can be judged as it grows (`ClassSignal`).
    """

    BESIDE = enum.auto()
    PREFIX = enum.auto()
    ADDS = enum.auto()
    REPLACES = enum.auto()
    DRAFTS = enum.auto()
    CLASSES = enum.auto()


NOTHING = Capability(0)

STEERS = Capability.ADDS | Capability.REPLACES
"""A signal that steers has one of these."""


def describe(capability: Capability) -> str:
    """Says what a signal with these capabilities does, for messages: `drafts tokens`."""
    return " and ".join(_WORDS[part] for part in capability) or "predicts anything"


_WORDS = {
    Capability.BESIDE: "gives a number beside every token",
    Capability.PREFIX: "gives a number for every prefix",
    Capability.ADDS: "scores every next token (a reward does with a vocabulary head)",
    Capability.REPLACES: "moves the logits by two distributions",
    Capability.DRAFTS: "drafts tokens",
    Capability.CLASSES: "gives the probabilities of labels (a guard does)",
}


@dataclass(frozen=True, slots=True)
class SignalConfig:
    """The configuration of a signal is a frozen dataclass, with fields made by `otterlm.settings.setting`.

    Attributes:
        type: the signal's name, in `adapter_config.json` and on the command line.
    """

    type: ClassVar[str]

    @property
    def capabilities(self) -> Capability:
        """Returns what can be done with the signal."""
        raise NotImplementedError

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Self:
        """Makes a configuration of the fields that a file holds. A signal whose defaults have changed gives older files
        the old ones here."""
        return cls(**values)

    @property
    def typical_range(self) -> tuple[float, float] | None:
        """Returns the lowest and the highest number that texts usually have, for a colour scale; None: not known."""
        return None

    @property
    def reads_end(self) -> bool:
        """Says whether the number after the end token of a text is learned. Otherwise a finished text is judged at the
        last token before it."""
        return True

    @property
    def unit(self) -> float:
        """Returns what next tokens typically change in the signal; 1 where it was not measured.

        Steering divides by it, so that a weight means the same for every adapter.
        """
        return 1.0

    def limits(self, width: int, vocabulary: int) -> dict[str, tuple[int, int]]:
        """Returns, for each size, its value and the most that makes sense on a base of this width and vocabulary."""
        return {}

    def derived_parameters(self, vocabulary: int) -> int:
        """Counts the numbers that are in memory but not in files, such as a projection folded with the unembedding."""
        return 0


class Signal(Protocol):
    """A signal is what one forward pass predicts.

    Attributes:
        state: [h, h'] after the final norm, `[B, T, d + d']`.
    """

    state: Tensor

    def beside(self, token: int, before: Any) -> float:
        """Returns the number beside a token of a batch of one. Needs `Capability.BESIDE`.

        Args:
            token: its id; this pass read it last.
            before: the same signal of the pass that chose it.
        """


class PrefixSignal(Signal, Protocol):
    """The signal has `Capability.PREFIX`."""

    @property
    def prefix(self) -> Tensor:
        """Returns the number of every prefix that ends in this pass, `[B, T]` float32."""


class ClassConfig(Protocol):
    """The configuration is that of a signal with `Capability.CLASSES`.

    Attributes:
        labels: the names of the classes.
        alarms: the probability of each class that raises an alarm from which on a token is a hit.
        thresholds: the probability of each of them from which on a whole text counts.
        hits, window: the alarm rings when so many of the latest `window` tokens are hits.
        spans: the classes whose passages are marked, too.
    """

    @property
    def labels(self) -> tuple[str, ...]: ...

    @property
    def alarms(self) -> Mapping[str, float]: ...

    @property
    def thresholds(self) -> Mapping[str, float]: ...

    @property
    def hits(self) -> int: ...

    @property
    def window(self) -> int: ...

    @property
    def spans(self) -> tuple[str, ...]: ...


class ClassSignal(Signal, Protocol):
    """The signal has `Capability.CLASSES`. Its `beside` is a probability: that no class raises an alarm.

    Attributes:
        labels: the names of the classes, L of them.
    """

    labels: tuple[str, ...]

    @property
    def probabilities(self) -> Tensor:
        """Returns that of every class after every prefix that ends in this pass, `[B, T, L]` float32."""

    @property
    def span_probabilities(self) -> Tensor:
        """Returns that of every prefix's last token being inside a passage, `[B, T, S]` float32, of each class of
        `ClassConfig.spans`."""


class AddedSignal(Signal, Protocol):
    """The signal has `Capability.ADDS`."""

    def vocabulary(self, tokens: Tensor | None = None, position: int = -1) -> Tensor:
        """Returns scores of next tokens, `[B, k]` float32 for `[B, k]` ids, or `[B, V]` for all."""


class ReplacedSignal(Signal, Protocol):
    """The signal has `Capability.REPLACES`."""

    def difference(self, position: int = -1) -> Tensor:
        """Returns how the logits are to be moved, `[B, V]` float32."""


class Head(Protocol):
    """Reads a signal from the widened state: a module made as `head(config, d + d', d, dtype=..., device=...)`."""

    def initialize(self) -> None:
        """Sets the parameters that training starts from."""

    def __call__(self, state: Tensor, unembedding: Tensor) -> Signal:
        """Maps `[B, T, d + d']` and the base's unembedding, `[V, d]`, to the signal."""


class Objective(Protocol):
    """An objective is a module that holds the model and computes what a batch teaches its adapter.

    Attributes:
        identity: what a checkpoint must agree with, beside the trainer's settings; JSON can hold it.
    """

    identity: dict[str, Any]

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """Maps a packed batch to scalars, means over it, with `loss` among them."""


@dataclass(frozen=True, slots=True)
class SignalType:
    """A signal type names its parts as `module:name`, and they are imported when they are first used.

    Attributes:
        config: its configuration.
        head: its head.
        recipes: how its adapters are made, by verb (`train`, `distill`), see `otterlm.training.recipes.base.Recipe`.
    """

    config: type[SignalConfig]
    head: str
    recipes: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Returns the name in `adapter_config.json` and on the command line."""
        return self.config.type

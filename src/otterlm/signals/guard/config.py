"""Configures the guard signal, and says what its probabilities mean."""

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, TypeVar

from otterlm.checks import LARGEST_PATIENCE
from otterlm.errors import OtterError
from otterlm.settings import check_settings, setting
from otterlm.signals.base import Capability, SignalConfig

Made = TypeVar("Made")


@dataclass(frozen=True, slots=True)
class SpanThreshold:
    """A threshold says which words of a text are inside a passage.

    Attributes:
        least: the least value of such a word.
        share: of the value of the text's highest word, which such a word reaches, too.
        listed: weight of the list of marked words in a word's value, from 0 to 1; the rest is the guard's probability.
    """

    least: float
    share: float = 0.0
    listed: float = 0.0


@dataclass(frozen=True, slots=True)
class MarkedWords:
    """A list says how often a word stood inside passages of a label where the guard learned.

    See `otterlm.training.evaluation.marked_words`.

    Attributes:
        label: its name.
        shares: of each word in lower case, from 0 to 1; of words that are not listed 0.
    """

    label: str
    shares: Mapping[str, float]

    def __post_init__(self) -> None:
        shares = self.shares.values() if isinstance(self.shares, Mapping) else (None,)
        if not all(isinstance(share, int | float) and 0 <= share <= 1 for share in shares):
            raise OtterError("a list of marked words holds a number from 0 to 1 for each word")


@dataclass(frozen=True, slots=True)
class LabelCalibration:
    """A calibration says what the probabilities of one label mean, as measured on texts that were held out.

    See `otterlm.training.evaluation.guard_calibration`.

    Attributes:
        label: its name.
        curve: points (probability, share of the texts that have the label), both rising; between them the line.
        threshold: from this probability on a whole text counts as labelled: the highest F1.
        alarm: the probability from which on a token counts as a hit for the alarm of a running text.
        false_alarm_rate: the share of texts without the label in which the alarm was allowed to ring.
        span: from this value on a word counts as inside a span; None where no spans were learned.
        span_share: and from this share of the value of its text's highest word on.
        span_listed: how much the list of marked words counts in a word's value, see `SpanThreshold`.
    """

    label: str
    curve: tuple[tuple[float, float], ...]
    threshold: float
    alarm: float
    false_alarm_rate: float
    span: float | None = None
    span_share: float = 0.0
    span_listed: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "curve", tuple(tuple(point) for point in self.curve))
        pairs = 1 <= len(self.curve) <= 1000 and all(len(point) == 2 for point in self.curve)
        if not pairs or not all(a[0] <= b[0] and a[1] <= b[1] for a, b in itertools.pairwise(self.curve)):
            raise OtterError("a label's curve is 1 to 1000 points (probability, share), both rising")
        numbers = [value for point in self.curve for value in point]
        numbers += [self.threshold, self.alarm, self.false_alarm_rate, self.span_share, self.span_listed]
        numbers += [] if self.span is None else [self.span]
        if not all(isinstance(value, int | float) and 0 <= value <= 1 for value in numbers):
            raise OtterError("a label's calibration holds numbers from 0 to 1")


@dataclass(frozen=True, slots=True)
class GuardConfig(SignalConfig):
    """The guard signal is the probability of each label for every position.

    Attributes:
        labels: their names. Without `harmless` they are independent of each other, and each is an offence.
        harmless: the labels that are no offence. Where there are any, the labels exclude each other (softmax), and a
            text has one of them.
        spans: the offences whose passages are marked, too, see `otterlm.signals.guard.head.GuardHead`.
        span_delay: so many tokens later a token's passage is judged, once what follows is known; at the end of a text
            as late as can be. Beside a token that was just read stands what is known at once.
        vocabulary_rank: rank of each label's vocabulary head; 0: the guard watches and does not steer.
        vocabulary_hidden: width of the head's two small networks, see `otterlm.signals.two_towers`; 0 for linear maps.
        hits, window: the alarm rings when so many of the latest `window` tokens reach the alarm's probability.
        calibrations: of each offence; empty: not measured.
        marked_words: lists of words that help to mark passages; empty: the guard marks them alone.
        harmless_names: what harmless texts were called in the data, so that other data are read alike.
    """

    type: ClassVar[str] = "guard"
    labels: tuple[str, ...] = ("unsafe",)
    harmless: tuple[str, ...] = ()
    spans: tuple[str, ...] = ()
    span_delay: int = setting(0, "Tokens that the judgement of passages waits for.", minimum=0, maximum=8)
    vocabulary_rank: int = setting(32, "Rank of each label's vocabulary head; 0 for none.", minimum=0)
    vocabulary_hidden: int = setting(256, "Hidden width of the vocabulary heads; 0 for linear ones.", minimum=0)
    hits: int = setting(
        1, "The alarm rings when so many tokens of --window reach its probability.", minimum=1, maximum=LARGEST_PATIENCE
    )
    window: int = setting(1, "Latest tokens that the alarm looks at.", minimum=1, maximum=LARGEST_PATIENCE)
    calibrations: tuple[LabelCalibration, ...] = ()
    marked_words: tuple[MarkedWords, ...] = ()
    harmless_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("labels", "harmless", "harmless_names", "spans"):
            object.__setattr__(self, name, _names(name, getattr(self, name)))
        made = (_made(LabelCalibration, "a calibration", each) for each in self.calibrations)
        object.__setattr__(self, "calibrations", tuple(made))
        lists = (_made(MarkedWords, "a list of marked words", each) for each in self.marked_words)
        object.__setattr__(self, "marked_words", tuple(lists))
        check_settings(self)
        if not self.offences or not set(self.harmless) <= set(self.labels):
            raise OtterError(f"harmless must be some of the labels, not all: {', '.join(self.labels) or 'none'}")
        if not set(self.spans) <= set(self.offences):
            raise OtterError(f"spans are of offences ({', '.join(self.offences)}), got {', '.join(self.spans)}")
        if not {each.label for each in self.marked_words} <= set(self.spans):
            raise OtterError(f"marked words are of labels with spans, which are: {', '.join(self.spans) or 'none'}")
        if self.hits > self.window:
            raise OtterError(f"hits ({self.hits}) must not exceed the window ({self.window})")
        calibrated = tuple(each.label for each in self.calibrations)
        if calibrated and calibrated != self.offences:
            raise OtterError(f"calibrations are of {', '.join(self.offences)} in this order, got {calibrated}")

    @property
    def exclusive(self) -> bool:
        """Says whether a text has exactly one of the labels."""
        return bool(self.harmless)

    @property
    def offences(self) -> tuple[str, ...]:
        """Returns the labels that raise an alarm, in the order of `labels`."""
        return tuple(label for label in self.labels if label not in self.harmless)

    @property
    def alarms(self) -> dict[str, float]:
        """Returns the probability of each offence from which on a token is a hit; 0.5 where it was not measured."""
        return dict.fromkeys(self.offences, 0.5) | {each.label: each.alarm for each in self.calibrations}

    @property
    def thresholds(self) -> dict[str, float]:
        """Returns the probability of each offence from which on a whole text counts; 0.5 where it was not measured."""
        return dict.fromkeys(self.offences, 0.5) | {each.label: each.threshold for each in self.calibrations}

    @property
    def span_thresholds(self) -> dict[str, SpanThreshold]:
        """Returns what makes a word a part of a span, of each label of `spans`."""
        measured = {
            each.label: SpanThreshold(each.span, each.span_share, each.span_listed)
            for each in self.calibrations
            if each.span is not None
        }
        return dict.fromkeys(self.spans, SpanThreshold(0.5)) | measured

    def word_shares(self, label: str) -> Mapping[str, float]:
        """Returns the list of marked words of a label; empty where there is none."""
        return next((each.shares for each in self.marked_words if each.label == label), {})

    @property
    def capabilities(self) -> Capability:
        """Returns what can be done; steering needs the vocabulary heads."""
        adds = Capability.ADDS if self.vocabulary_rank else Capability(0)
        return Capability.BESIDE | Capability.PREFIX | Capability.CLASSES | adds

    @property
    def typical_range(self) -> tuple[float, float]:
        """Returns the range of the probability that a text is harmless, which stands beside tokens."""
        return 0.0, 1.0

    @property
    def reads_end(self) -> bool:
        """Says that labels are not learned at end tokens, see `SignalConfig`."""
        return False

    def limits(self, width: int, vocabulary: int) -> dict[str, tuple[int, int]]:
        """Returns the limit of the rank, see `SignalConfig`."""
        return {"vocabulary_rank": (self.vocabulary_rank, width)}

    def derived_parameters(self, vocabulary: int) -> int:
        """Counts each label's up projection folded with the unembedding."""
        return vocabulary * self.vocabulary_rank * len(self.labels)


def _names(field: str, names: Iterable[str]) -> tuple[str, ...]:
    listed = () if isinstance(names, str) else tuple(names)
    if isinstance(names, str) or not all(isinstance(name, str) and name.strip() for name in listed):
        raise OtterError(f"{field} must be a list of names, got {names!r}")
    if len(set(listed)) < len(listed):
        raise OtterError(f"{field} holds a name twice: {', '.join(listed)}")
    return listed


def _made(kind: type[Made], what: str, values: object) -> Made:
    """Makes a part of a configuration of what JSON holds, or returns one that was made."""
    if isinstance(values, kind):
        return values
    if not isinstance(values, dict):
        raise OtterError(f"{what} must be an object, got {values!r}")
    return kind(**values)

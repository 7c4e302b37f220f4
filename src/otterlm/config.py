"""What is inserted and what it predicts: validated dataclasses, JSON in and out."""

import dataclasses
import itertools
import json
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

from otterlm.errors import OtterError

FORMAT_VERSION = 1
"""Of `adapter_config.json` and the tensor names; raised when an older reader would misread them."""

Initialization = Literal["copy", "random", "normal"]
Embedding = Literal["projection", "table"]


@dataclass(frozen=True, slots=True)
class Calibration:
    """What rewards mean, see `otterlm.training.calibration`.

    Attributes:
        curve: points (reward, score), both rising; between them the line.
        threshold: of an alarm.
        false_alarm_rate: the share of good responses that were to fall under it.
    """

    curve: tuple[tuple[float, float], ...]
    threshold: float
    false_alarm_rate: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "curve", tuple(tuple(point) for point in self.curve))
        numbers = [value for point in self.curve for value in point] + [self.threshold, self.false_alarm_rate]
        if not all(isinstance(value, int | float) and abs(value) < 1e30 for value in numbers):
            raise OtterError("a calibration holds finite numbers")
        rising = all(a[0] <= b[0] and a[1] <= b[1] for a, b in itertools.pairwise(self.curve))
        if not 1 <= len(self.curve) <= 1000 or any(len(point) != 2 for point in self.curve) or not rising:
            raise OtterError("a calibration's curve is 1 to 1000 points (reward, score), both rising")


@dataclass(frozen=True, slots=True)
class RewardConfig:
    """The reward signal: a scalar for every prefix, and for every possible next token.

    Attributes:
        vocabulary_rank: rank of the vocabulary head; 0 for the prefix head alone.
        calibration: what the rewards mean; None: not measured.
    """

    type: ClassVar[str] = "reward"
    vocabulary_rank: int = 16
    calibration: Calibration | None = None

    def __post_init__(self) -> None:
        _check_int("vocabulary_rank", self.vocabulary_rank, minimum=0)
        if isinstance(self.calibration, dict):  # from JSON
            object.__setattr__(self, "calibration", Calibration(**self.calibration))
        if self.calibration is not None and not isinstance(self.calibration, Calibration):
            raise OtterError(f"calibration must be an object, got {self.calibration!r}")

    def limits(self, width: int, vocabulary: int) -> dict[str, tuple[int, int]]:
        """Of each size: what it is, and the most that makes sense on a base of this width and vocabulary."""
        return {"vocabulary_rank": (self.vocabulary_rank, width)}

    def derived_parameters(self, vocabulary: int) -> int:
        """Numbers kept in memory that are not stored: an up projection folded with the unembedding."""
        return vocabulary * self.vocabulary_rank


@dataclass(frozen=True, slots=True)
class ContrastConfig:
    """The contrast signal: the next-token distributions of an expert and an anti-expert.

    Attributes:
        rank: of each side's correction of the base's logits.
    """

    type: ClassVar[str] = "contrast"
    rank: int = 32

    def __post_init__(self) -> None:
        _check_int("rank", self.rank, minimum=1)

    def limits(self, width: int, vocabulary: int) -> dict[str, tuple[int, int]]:
        """As in `RewardConfig`."""
        return {"rank": (self.rank, width)}

    def derived_parameters(self, vocabulary: int) -> int:
        """As in `RewardConfig`."""
        return 2 * vocabulary * self.rank


@dataclass(frozen=True, slots=True)
class DraftConfig:
    """The draft signal: guesses at the tokens after the next one.

    Attributes:
        heads: how many tokens are drafted, one after the other.
        width: hidden units of each head.
        rank: size of the codes that the vocabulary is scored with.
        vocabulary_size: how many tokens can be drafted, the ones the base says most often.
        sequential: whether a head sees the tokens between the state and its guess, and the code of the head before.
        accuracy: of each head, how often its best, second best, ... guess is right when all before it were, as measured
            after training; the draft tree is shaped by it. Empty: not measured.
    """

    type: ClassVar[str] = "draft"
    heads: int = 4
    width: int = 512
    rank: int = 256
    vocabulary_size: int = 8192
    sequential: bool = True
    accuracy: tuple[tuple[float, ...], ...] = ()

    def __post_init__(self) -> None:
        for name in ("heads", "width", "rank", "vocabulary_size"):
            _check_int(name, getattr(self, name), minimum=1)
        if not isinstance(self.sequential, bool):
            raise OtterError(f"sequential must be true or false, got {self.sequential!r}")
        object.__setattr__(self, "accuracy", tuple(tuple(row) for row in self.accuracy))
        for row in self.accuracy:
            if not row or len(row) > MAX_GUESSES or not all(isinstance(v, int | float) and 0 <= v <= 1 for v in row):
                raise OtterError(f"accuracy must hold, for each head, 1 to {MAX_GUESSES} shares from 0 to 1")
        if self.accuracy and len(self.accuracy) != self.heads:
            raise OtterError(f"accuracy is given for {len(self.accuracy)} heads, but there are {self.heads}")

    def limits(self, width: int, vocabulary: int) -> dict[str, tuple[int, int]]:
        """As in `RewardConfig`."""
        return {
            "heads": (self.heads, 16),
            "width": (self.width, 8 * width),
            "rank": (self.rank, width),
            "vocabulary_size": (self.vocabulary_size, vocabulary),
        }

    def derived_parameters(self, vocabulary: int) -> int:
        """As in `RewardConfig`."""
        return self.vocabulary_size * self.rank


SignalConfig = RewardConfig | ContrastConfig | DraftConfig
SIGNALS: dict[str, type[SignalConfig]] = {signal.type: signal for signal in (RewardConfig, ContrastConfig, DraftConfig)}

MAX_GUESSES = 16
"""The most guesses of one draft head that are measured or tried."""


@dataclass(frozen=True, slots=True)
class OtterConfig:
    """One adapter: the shape of the inserted stream and the signal read from it.

    Attributes:
        hidden_size: d', the width of h', the state inserted beside the base's.
        num_attention_heads: H', extra attention heads a block.
        num_key_value_heads: extra key/value heads a block; divides `num_attention_heads`.
        head_dim: of the extra heads; divides the base's head size. None: the base's.
        intermediate_size: f', extra FFN units a block.
        layers: which blocks are widened, by index, ascending; None: all.
        embedding: where h' comes from. `table`: E', a column slice of the embedding, trained (the paper's).
            `projection`: a linear map of the base's state before the first widened block, which costs d x d' parameters
                rather than
            vocabulary x d'. Copy initialisation makes both the first d' channels of that state.
        initialization: of the inserted parameters: slices of the base's own (`copy`, the paper's best), torch's default
            for linear layers (`random`), or N(0, 0.02) (`normal`).
        signal: what is predicted.
        base_model_name_or_path: the base it was trained on.
        base_fingerprint: sampled weights of that base, see `otterlm.fingerprint`.
        version: of the format.
    """

    hidden_size: int = 64
    num_attention_heads: int = 3
    num_key_value_heads: int = 1
    head_dim: int | None = None
    intermediate_size: int = 128
    layers: tuple[int, ...] | None = None
    embedding: Embedding = "projection"
    initialization: Initialization = "copy"
    signal: SignalConfig = field(default_factory=RewardConfig)
    base_model_name_or_path: str | None = None
    base_fingerprint: tuple[float, ...] | None = None
    version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        for name in ("hidden_size", "num_attention_heads", "num_key_value_heads", "intermediate_size"):
            _check_int(name, getattr(self, name), minimum=1)
        if self.num_attention_heads % self.num_key_value_heads:
            raise OtterError(
                f"num_attention_heads ({self.num_attention_heads}) must be a multiple of "
                f"num_key_value_heads ({self.num_key_value_heads})"
            )
        if self.head_dim is not None:
            _check_int("head_dim", self.head_dim, minimum=2)
        if self.layers is not None:
            for layer in self.layers:
                _check_int("layers", layer, minimum=0)
            if not self.layers or list(self.layers) != sorted(set(self.layers)):
                raise OtterError(f"layers must be distinct and ascending, got {list(self.layers)}")
        for name, allowed in (("embedding", Embedding), ("initialization", Initialization)):
            if getattr(self, name) not in get_args(allowed):
                raise OtterError(f"{name} must be one of {', '.join(get_args(allowed))}, got {getattr(self, name)!r}")
        if self.base_fingerprint is not None and not all(
            isinstance(value, float | int) and abs(value) < 1e30 for value in self.base_fingerprint
        ):
            raise OtterError("base_fingerprint must be a list of numbers")
        if self.base_model_name_or_path is not None and not isinstance(self.base_model_name_or_path, str):
            raise OtterError(f"base_model_name_or_path must be a text, got {self.base_model_name_or_path!r}")
        if self.version != FORMAT_VERSION:
            newer = isinstance(self.version, int) and self.version > FORMAT_VERSION
            advice = "update otter-lm" if newer else "there never was such an adapter of otter-lm; train it anew"
            raise OtterError(
                f"the adapter has format version {self.version!r}, this Otter reads {FORMAT_VERSION}: {advice}"
            )

    def to_json(self) -> str:
        """The text of `adapter_config.json`, keys sorted."""
        values = dataclasses.asdict(self) | {"peft_type": "OTTER"}
        values["signal"] = {"type": self.signal.type, **values["signal"]}
        return json.dumps(values, indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str = "adapter_config.json") -> "OtterConfig":
        """Reads what `to_json` wrote.

        Raises:
            OtterError: it is not JSON, or a field is unknown, missing or out of range.
        """
        try:
            values = json.loads(text)
            if not isinstance(values, dict) or values.pop("peft_type", None) != "OTTER":
                raise OtterError(f"{where} is not an Otter adapter's configuration (peft_type is not OTTER)")
            signal = dict(values.pop("signal"))
            kind = signal.pop("type", None)
            if not isinstance(kind, str) or kind not in SIGNALS:
                raise OtterError(f"{where}: unknown signal {kind!r}; this Otter knows: {', '.join(SIGNALS)}")
            if not isinstance(values.get("version"), int):
                raise OtterError(f"{where}: version is missing or not a whole number")
            for name in ("layers", "base_fingerprint"):
                if values.get(name) is not None:
                    values[name] = tuple(values[name])
            return cls(signal=SIGNALS[kind](**signal), **values)
        except OtterError as error:
            raise OtterError(f"{where}: {error}" if where not in str(error) else str(error)) from None
        except (json.JSONDecodeError, RecursionError) as error:
            raise OtterError(f"{where} is not valid JSON: {error}") from error
        except (TypeError, KeyError, ValueError) as error:
            raise OtterError(f"{where} has a missing, unknown or malformed field: {error}") from error


def _check_int(name: str, value: Any, minimum: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        raise OtterError(f"{name} must be a whole number of at least {minimum}, got {value!r}")

"""What is inserted and what it predicts: validated dataclasses, JSON in and out."""

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from otterlm.errors import OtterError

FORMAT_VERSION = 1
"""Of `adapter_config.json` and the tensor names; raised when an older reader would misread them."""

Initialization = Literal["copy", "random", "normal"]
Embedding = Literal["projection", "table"]


@dataclass(frozen=True, slots=True)
class RewardConfig:
    """The reward signal: a scalar for every prefix, and for every possible next token.

    Attributes:
        vocabulary_rank: rank of the vocabulary head; 0 for the prefix head alone.
    """

    vocabulary_rank: int = 16

    def __post_init__(self) -> None:
        _check_int("vocabulary_rank", self.vocabulary_rank, minimum=0)


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
    signal: RewardConfig = field(default_factory=RewardConfig)
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
        if self.base_fingerprint is not None and not all(isinstance(v, float | int) for v in self.base_fingerprint):
            raise OtterError("base_fingerprint must be a list of numbers")
        if self.version != FORMAT_VERSION:
            raise OtterError(
                f"the adapter has format version {self.version!r}, this Otter reads {FORMAT_VERSION}: update otter-lm"
            )

    def to_json(self) -> str:
        """The text of `adapter_config.json`, keys sorted."""
        values = dataclasses.asdict(self) | {"peft_type": "OTTER"}
        values["signal"] = {"type": "reward", **values["signal"]}
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
            if kind != "reward":
                raise OtterError(f"{where}: unknown signal {kind!r}; this Otter knows: reward")
            if not isinstance(values.get("version"), int):
                raise OtterError(f"{where}: version is missing or not a whole number")
            for name in ("layers", "base_fingerprint"):
                if values.get(name) is not None:
                    values[name] = tuple(values[name])
            return cls(signal=RewardConfig(**signal), **values)
        except OtterError as error:
            raise OtterError(f"{where}: {error}" if where not in str(error) else str(error)) from None
        except (json.JSONDecodeError, RecursionError) as error:
            raise OtterError(f"{where} is not valid JSON: {error}") from error
        except (TypeError, KeyError, ValueError) as error:
            raise OtterError(f"{where} has a missing, unknown or malformed field: {error}") from error


def _check_int(name: str, value: Any, minimum: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        raise OtterError(f"{name} must be a whole number of at least {minimum}, got {value!r}")

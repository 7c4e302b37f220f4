"""Describes and checks what is inserted and what it predicts, and reads and writes that as JSON."""

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Literal, get_args

from otterlm.checks import check_count
from otterlm.errors import OtterError
from otterlm.layers import parse_layers
from otterlm.settings import setting
from otterlm.signals import signal_type
from otterlm.signals.base import SignalConfig

# Scripts of 0.1 import these from here.
from otterlm.signals.contrast.config import ContrastConfig as ContrastConfig
from otterlm.signals.draft.config import DraftConfig as DraftConfig
from otterlm.signals.reward.config import Calibration as Calibration
from otterlm.signals.reward.config import RewardConfig as RewardConfig

FORMAT_VERSION = 1
"""The version of `adapter_config.json` and the tensor names. It rises when an older reader would misread them."""

Initialization = Literal["copy", "random", "normal"]
Taps = Literal["inside", "edge"]
Embedding = Literal["projection", "table"]


@dataclass(frozen=True, slots=True)
class OtterConfig:
    """The configuration describes one adapter: the shape of the inserted stream and the signal read from it.

    Attributes:
        hidden_size: d', the width of h', the state inserted beside the base's.
        num_attention_heads: H', extra attention heads a block.
        num_key_value_heads: extra key/value heads a block; divides `num_attention_heads`.
        head_dim: of the extra heads; inside a block it divides the base's head size. None: the base's; at its edge 64.
        intermediate_size: f', extra FFN units a block.
        layers: which blocks are widened, by index, ascending; None: all.
        embedding: where h' comes from. `table`: E', a column slice of the embedding, trained (the paper's).
            `projection`: a linear map of the base's state before the first widened block, which costs d x d' parameters
            rather than vocabulary x d'. Copy initialisation makes both the first d' channels of that state.
        initialization: of the inserted parameters: slices of the base's (`copy`, the paper's best), torch's default
            for linear layers (`random`), or N(0, 0.02) (`normal`).
        taps: what is read of a block: its heads and units, too (`inside`, the paper's), or only the state that enters
            it and what it adds (`edge`). None: `inside` where the base's family is known, else `edge`; a saved adapter
            says which it was.
        signal: what is predicted.
        base_model_name_or_path: the base it was trained on.
        base_fingerprint: sampled weights of that base, see `otterlm.fingerprint`.
        version: of the format.
    """

    hidden_size: int = setting(64, "d', inserted hidden channels.")
    num_attention_heads: int = setting(3, "H', extra attention heads a block.", option="--heads", advanced=True)
    num_key_value_heads: int = setting(1, "Extra key/value heads a block.", option="--kv-heads", advanced=True)
    head_dim: int | None = None
    intermediate_size: int = setting(128, "f', extra FFN units a block.", advanced=True)
    layers: tuple[int, ...] | None = setting(
        None, "Widened blocks, such as 4,8,12 or 11-29:2 (every second); default all.", parse=parse_layers
    )
    embedding: Embedding = setting("projection", "projection, or table (the paper's).", advanced=True)
    initialization: Initialization = setting("copy", "copy, random or normal.", advanced=True)
    taps: Taps | None = setting(
        None, "Where blocks are read: inside, or edge; default inside where the family is known.", advanced=True
    )
    signal: SignalConfig = field(default_factory=RewardConfig, metadata={"advanced": True})
    base_model_name_or_path: str | None = None
    base_fingerprint: tuple[float, ...] | None = None
    version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        for name in ("hidden_size", "num_attention_heads", "num_key_value_heads", "intermediate_size"):
            object.__setattr__(self, name, check_count(name, getattr(self, name)))
        if self.num_attention_heads % self.num_key_value_heads:
            raise OtterError(
                f"num_attention_heads ({self.num_attention_heads}) must be a multiple of "
                f"num_key_value_heads ({self.num_key_value_heads})"
            )
        if self.head_dim is not None:
            object.__setattr__(self, "head_dim", check_count("head_dim", self.head_dim, least=2))
        if self.layers is not None:
            layers = tuple(check_count("layers", layer, least=0) for layer in self.layers)
            object.__setattr__(self, "layers", layers)
            if not self.layers or list(self.layers) != sorted(set(self.layers)):
                raise OtterError(f"layers must be distinct and ascending, got {list(self.layers)}")
        for name, allowed in (("embedding", Embedding), ("initialization", Initialization), ("taps", Taps)):
            if getattr(self, name) not in get_args(allowed) and (name, getattr(self, name)) != ("taps", None):
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
        """Returns the text of `adapter_config.json`, keys sorted."""
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
            kind = signal_type(str(signal.pop("type", None))).config
            if not isinstance(values.get("version"), int):
                raise OtterError(f"{where}: version is missing or not a whole number")
            for name in ("layers", "base_fingerprint"):
                if values.get(name) is not None:
                    values[name] = tuple(values[name])
            return cls(signal=kind.parse(signal), **values)
        except OtterError as error:
            raise OtterError(f"{where}: {error}" if where not in str(error) else str(error)) from None
        except (json.JSONDecodeError, RecursionError) as error:
            raise OtterError(f"{where} is not valid JSON: {error}") from error
        except (TypeError, KeyError, ValueError) as error:
            raise OtterError(f"{where} has a missing, unknown or malformed field: {error}") from error


def check_config(config: object) -> OtterConfig:
    """Checks that an object is a configuration of Otter, and returns it.

    Raises:
        OtterError: it is something else, such as a configuration of PEFT.
    """
    if isinstance(config, OtterConfig):
        return config
    raise OtterError(f"add_adapter takes an OtterConfig, and then a name, but got a {type(config).__name__} first")

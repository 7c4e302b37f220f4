"""Decides which adapters an engine serves while it runs.

An engine makes room for adapters when it starts: weights, a part of the KV cache, places in compiled graphs. Each
adapter has such a slot. One that is unloaded leaves its slot to another of the same shape.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch

from otterlm import adapter_files
from otterlm.config import OtterConfig
from otterlm.engines.capabilities import signal_config
from otterlm.errors import OtterError
from otterlm.fingerprint import alike
from otterlm.signals import head_class
from otterlm.signals.base import Capability

SIZES = (
    "hidden_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "layers",
    "embedding",
    "taps",
)
"""These fields of a configuration say what an engine makes room for."""


@dataclass(frozen=True, slots=True)
class Slots:
    """Holds the slots of an engine, in the order in which it was made.

    Attributes:
        adapters: the configuration of the adapter in each slot, by the adapter's name.
        unloaded: those that may be replaced.
    """

    adapters: Mapping[str, Mapping[str, Any]]
    unloaded: tuple[str, ...] = field(default=())

    def unload(self, name: str) -> Self:
        """Returns the slots after an adapter was unloaded. Its weights stay until another takes its slot.

        Raises:
            OtterError: there is no such adapter.
        """
        loaded = [each for each in self.adapters if each not in self.unloaded]
        if name not in loaded:
            raise OtterError(f"there is no adapter {name!r}; there are: {', '.join(loaded) or 'none'}")
        return type(self)(self.adapters, (*self.unloaded, name))

    def slot_for(self, name: str, config: OtterConfig, width: int) -> str:
        """Returns the unloaded adapter whose slot another can take.

        Args:
            name: of the new adapter.
            config: its configuration.
            width: of the base's hidden states.

        Raises:
            OtterError: its name is taken, it is of another base, or no slot of its shape is free.
        """
        if not name.isidentifier():
            raise OtterError(f"the adapter's name must be letters, digits and underscores, got {name!r}")
        if name in self.adapters and name not in self.unloaded:
            raise OtterError(f"an adapter {name!r} is loaded: unload it first, or choose another name")
        wanted, why = shape(config, width), []
        for slot in sorted(self.unloaded, key=lambda slot: slot != name):  # its own slot, if it had one
            other = OtterConfig.from_json(json.dumps(self.adapters[slot]), f"adapter {slot}")
            if reason := _misfit(wanted, shape(other, width)):
                why.append(f"{slot} has {reason}")
            elif name != slot and (name in self.unloaded or Capability.DRAFTS in config.signal.capabilities):
                why.append(f"{slot} has another name, which {name} cannot take")
            elif not _same_base(config, other):
                raise OtterError("the adapter was trained on another base, or does not say on which")
            else:
                return slot
        free = "; ".join(why) or "unload one first"
        raise OtterError(f"no slot of the shape of {name} is free: {free}")

    def load(self, slot: str, name: str, config: OtterConfig) -> Self:
        """Returns the slots after an adapter took another's slot."""
        new = json.loads(config.to_json())
        adapters = {
            (name if each == slot else each): (new if each == slot else values)
            for each, values in self.adapters.items()
        }
        return type(self)(adapters, tuple(each for each in self.unloaded if each != slot))

    def listing(self) -> list[dict[str, Any]]:
        """Returns a line for each slot: the adapter's name, whether it is loaded, its signal, width and labels."""
        return [
            {
                "id": name,
                "object": "adapter",
                "loaded": name not in self.unloaded,
                "signal": values["signal"]["type"],
                "hidden_size": values["hidden_size"],
                "labels": list(getattr(signal_config(values["signal"]), "labels", ())),
            }
            for name, values in self.adapters.items()
        ]


def _same_base(config: OtterConfig, other: OtterConfig) -> bool:
    mine, theirs = config.base_fingerprint or (), other.base_fingerprint or ()
    return bool(mine and theirs) and alike(theirs, mine)


def shape(config: OtterConfig, width: int) -> dict[str, Any]:
    """Returns what two adapters must have in common for one to take the other's slot.

    Args:
        config: of the adapter.
        width: of the base's hidden states.
    """
    with torch.device("meta"):
        head = head_class(config.signal)(config.signal, width + config.hidden_size, width)
    tensors: Any = head
    sizes = {name: getattr(config, name) for name in SIZES} | {"taps": config.taps or "inside"}
    weights = {f"head.{name}": list(tensor.shape) for name, tensor in tensors.state_dict().items()}
    return {"signal": config.signal.type, **sizes, **weights}


def _misfit(wanted: Mapping[str, Any], there: Mapping[str, Any]) -> str | None:
    """Says how a slot differs; None where it fits."""
    for name in dict.fromkeys([*wanted, *there]):
        if wanted.get(name) != there.get(name):
            return f"{name} {there.get(name, 'none')}, not {wanted.get(name, 'none')}"
    return None


def read(folder: Path) -> OtterConfig:
    """Reads the configuration of an adapter that is to be loaded.

    Raises:
        OtterError: it cannot be read, or its weights are not there.
    """
    if not (folder / adapter_files.WEIGHTS).is_file():
        raise OtterError(f"{folder / adapter_files.WEIGHTS}: no such file")
    return adapter_files.read_config(folder)

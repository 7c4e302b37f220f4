"""Joins an inserted stream and the head that reads its signal to an adapter."""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from otterlm.config import OtterConfig
from otterlm.errors import OtterError
from otterlm.families import Family
from otterlm.families.parts import device_of
from otterlm.signals import head_class
from otterlm.stream import InsertedStream


class Adapter(nn.Module):
    """An adapter is an inserted stream and its head.

    Raises:
        OtterError: it does not fit the base, or the blocks that it widens compute on several devices.
    """

    def __init__(self, config: OtterConfig, base: PreTrainedModel, family: Family, dtype: torch.dtype) -> None:
        super().__init__()
        self.config = config
        device = device_of(base.get_input_embeddings())
        self.stream = InsertedStream(config, base, family, dtype, device)
        widths = self.stream.widths
        blocks: Any = base.get_decoder().get_submodule(family.layers)
        outputs = (blocks[layer].get_submodule(family.attention_output) for layer in widths.layers)
        if others := {other for part in outputs if (other := device_of(part)) != device}:
            devices = ", ".join(sorted(map(str, (device, *others))))
            raise OtterError(
                f"the base's blocks compute on {devices}, but an inserted stream runs on one device: "
                f"load the base with device_map={{'': '{device}'}}"
            )
        head = head_class(config.signal)
        self.head = head(config.signal, widths.base + widths.inserted, widths.base, dtype=dtype, device=device)

    def extra_parameters(self, vocabulary_size: int) -> int:
        """Counts the numbers that it has in memory: its parameters, and those derived from them and the unembedding."""
        inserted = sum(parameter.numel() for parameter in self.parameters())
        return inserted + self.config.signal.derived_parameters(vocabulary_size)

"""Joins an inserted stream and the head that reads its signal to an adapter."""

from dataclasses import replace

import torch
from torch import nn
from transformers import PreTrainedModel

from otterlm.config import OtterConfig
from otterlm.errors import OtterError
from otterlm.families import Family, Outline, facts_for
from otterlm.families.parts import blocks_of, device_of
from otterlm.identity import Identity
from otterlm.signals import head_class
from otterlm.stream import InsertedStream


def resolved(config: OtterConfig, family: Outline) -> tuple[OtterConfig, Outline]:
    """Returns an adapter's configuration that says how it reads a base, and the facts by which it does.

    Raises:
        OtterError: it is to read the inside of blocks that are not known inside.
    """
    facts = facts_for(config.taps, family)
    return replace(config, taps="inside" if isinstance(facts, Family) else "edge"), facts


class Adapter(nn.Module):
    """An adapter is an inserted stream and its head.

    Attributes:
        config: its shape; says how it reads the base.
        family: the facts by which it reads the base.
        loaded: a digest of the weights that were loaded into it; None: it was initialised.

    Raises:
        OtterError: it does not fit the base, or the blocks that it widens compute on several devices.
    """

    def __init__(self, config: OtterConfig, base: PreTrainedModel, family: Outline, dtype: torch.dtype) -> None:
        super().__init__()
        self.config, self.family = config, family = resolved(config, family)
        self.loaded: Identity | None = None
        device = device_of(base.get_input_embeddings())
        self.stream = InsertedStream(config, base, family, dtype, device)
        widths = self.stream.widths
        blocks = blocks_of(base, family)
        if others := {other for layer in widths.layers if (other := device_of(blocks[layer])) != device}:
            devices = ", ".join(sorted(map(str, (device, *others))))
            raise OtterError(
                f"the base's blocks compute on {devices}, but an inserted stream runs on one device: "
                f"load the base with device_map={{'': '{device}'}}"
            )
        head, unembedded = head_class(config.signal), base.get_output_embeddings().weight.shape[1]
        self.head = head(config.signal, widths.base + widths.inserted, unembedded, dtype=dtype, device=device)

    def extra_parameters(self, vocabulary_size: int) -> int:
        """Counts the numbers that it has in memory: its parameters, and those derived from them and the unembedding."""
        inserted = sum(parameter.numel() for parameter in self.parameters())
        return inserted + self.config.signal.derived_parameters(vocabulary_size)

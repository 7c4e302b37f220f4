"""An adapter: an inserted stream and the head that reads its signal."""

import torch
from torch import nn
from transformers import PreTrainedModel

from otterlm.config import OtterConfig
from otterlm.families import Family
from otterlm.families.parts import device_of
from otterlm.signals import head_class
from otterlm.stream import InsertedStream


class Adapter(nn.Module):
    """An inserted stream and its head."""

    def __init__(self, config: OtterConfig, base: PreTrainedModel, family: Family, dtype: torch.dtype) -> None:
        super().__init__()
        self.config = config
        device = device_of(base.get_input_embeddings())
        self.stream = InsertedStream(config, base, family, dtype, device)
        widths = self.stream.widths
        head = head_class(config.signal)
        self.head = head(config.signal, widths.base + widths.inserted, widths.base, dtype=dtype, device=device)

    def extra_parameters(self, vocabulary_size: int) -> int:
        """How many numbers it keeps in memory: its parameters, and those derived from them and the unembedding."""
        inserted = sum(parameter.numel() for parameter in self.parameters())
        return inserted + self.config.signal.derived_parameters(vocabulary_size)

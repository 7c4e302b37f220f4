"""Rows of a batch that grow at their own pace."""

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList

from otterlm.model import OtterModel


@dataclass(frozen=True, slots=True)
class Reading:
    """What a pass says at one position of one row.

    Attributes:
        logits: `[V]`, of the next token.
        states: `[d + d']` of each adapter.
    """

    logits: Tensor
    states: dict[str, Tensor]

    @classmethod
    def of(cls, output: Any, row: int, position: int) -> Self:
        """From an `OtterModel`'s output."""
        states = {name: signal.state[row, position] for name, signal in output.signals.items()}
        return cls(output.logits[row, position], states)


def process_row(
    model: OtterModel, processor: LogitsProcessorList, tokens: Tensor, reading: Reading, index: int, batch: int
) -> Tensor:
    """What the logits processors make of one row.

    Args:
        model: its latest signals become the reading's, as if the pass had been of it alone: processors read them.
        processor: may hold a number for every row of the batch, so it sees this row in all places and is heard in
            this row's.
        tokens: `[T]`, of the row so far.
        reading: of the pass that read the last of them.
        index: of the row.
        batch: how many rows there are.

    Returns:
        `[V]` float32.
    """
    model.read_signals({name: state.expand(batch, 1, -1) for name, state in reading.states.items()})
    scores: Tensor = processor(tokens.expand(batch, -1), reading.logits.float().expand(batch, -1))
    return scores[index]


def join_rows(rows: list[Tensor], generation_config: GenerationConfig) -> Tensor:
    """Rows of several lengths as one tensor, `[B, T]`, padded on the right."""
    pad = generation_config._pad_token_tensor
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=0 if pad is None else int(pad))

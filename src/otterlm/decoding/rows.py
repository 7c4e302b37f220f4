"""Rows of a batch that grow at their own pace."""

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList


def process_row(processor: LogitsProcessorList, tokens: Tensor, logits: Tensor, index: int, batch: int) -> Tensor:
    """What the logits processors make of one row.

    Args:
        processor: may hold a number for every row of the batch, so it sees this row in all places and is heard in
            this row's.
        tokens: `[T]`, of the row so far.
        logits: `[V]`, of its next token.
        index: of the row.
        batch: how many rows there are.

    Returns:
        `[V]` float32.
    """
    scores: Tensor = processor(tokens.expand(batch, -1), logits.float().expand(batch, -1))
    return scores[index]


def join_rows(rows: list[Tensor], generation_config: GenerationConfig) -> Tensor:
    """Rows of several lengths as one tensor, `[B, T]`, padded on the right."""
    pad = generation_config._pad_token_tensor
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=0 if pad is None else int(pad))

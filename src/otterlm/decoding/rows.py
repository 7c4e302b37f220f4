"""Processes and joins rows of a batch that grow independently of each other."""

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from transformers import GenerationConfig

from otterlm.decoding.loop import Run
from otterlm.errors import OtterError


@dataclass(frozen=True, slots=True)
class Reading:
    """A reading is the output of a pass at one position of one row.

    Attributes:
        logits: `[V]`, of the next token.
        states: `[d + d']` of each adapter.
    """

    logits: Tensor
    states: dict[str, Tensor]

    @classmethod
    def of(cls, output: Any, row: int, position: int) -> Self:
        """Takes a reading from an `OtterModel`'s output, or from the base's, which has no signals."""
        signals = getattr(output, "signals", {})
        states = {name: signal.state[row, position] for name, signal in signals.items()}
        return cls(output.logits[row, position], states)


def process_row(run: Run, tokens: Tensor, reading: Reading, index: int) -> Tensor:
    """Returns the scores of one row after the logits processors.

    Args:
        run: its processors may hold a number for every row of the batch, so the row is repeated over the batch, and
            only its result is read. The model's latest signals become the reading's, as if the pass had been of this
            row alone: processors read them.
        tokens: `[T]`, of the row so far.
        reading: of the pass that read the last of them.
        index: of the row.

    Returns:
        `[V]` float32.
    """
    batch = len(run.input_ids)
    run.model.read_signals({name: state.expand(batch, 1, -1) for name, state in reading.states.items()})
    with run.generation.reading_row(index):
        scores: Tensor = run.processors(tokens.expand(batch, -1), reading.logits.float().expand(batch, -1))
    return scores[index]


def row_ends(run: Run, tokens: Tensor, index: int) -> bool:
    """Says whether the stopping criteria end a row.

    Args:
        run: its criteria may decide by the row's index, so the row is repeated over the batch.
        tokens: `[T]`, of the row so far.
        index: of the row.
    """
    return bool(run.criteria(tokens.expand(len(run.input_ids), -1), None)[index])


def join_rows(rows: list[Tensor], config: GenerationConfig) -> Tensor:
    """Joins rows of several lengths to one tensor, `[B, T]`, padded on the right.

    Raises:
        OtterError: there is no token to pad with.
    """
    pad = config._pad_token_tensor
    if pad is None and len({len(row) for row in rows}) > 1:
        raise OtterError("responses of several lengths are padded: give pad_token_id")
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=0 if pad is None else int(pad))


def repeated(prompts: Tensor, rows: int) -> Tensor:
    """Repeats a tensor of the prompts, `[B, ...]`, for the rows that `generate` makes of them, `[rows, ...]`.

    Raises:
        OtterError: the rows are no multiple of the prompts.
    """
    if rows % len(prompts):
        raise OtterError(f"{len(prompts)} prompts were given, but {rows} rows are generated")
    return prompts if rows == len(prompts) else prompts.repeat_interleave(rows // len(prompts), dim=0)

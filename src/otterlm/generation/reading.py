"""Decides which pass processors and criteria read while tokens are chosen.

A call of `generate` makes more passes than those that choose its tokens: the second pass of `guidance_scale`, those of
an assistant, those that a processor makes itself. And a pass that verifies drafts gives several tokens. So a call
holds the signals that belong to the token that is being chosen, and shows them to every processor and criterion.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import Cache, GenerationConfig, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from otterlm.signals.base import Signal

if TYPE_CHECKING:
    from otterlm.model import OtterModel


class Generation:
    """The generation is a call of `generate` that is running.

    Args:
        model: the model that generates.
        config: complete, as Transformers prepared it.
        drafts: the KV cache where passes verify drafts; None where each pass chooses one token a row.

    Attributes:
        choosing: whether processors are being called on the scores of one of this call's passes.
        reading: the signals of the pass that chooses the current token, which is their last position.
        ended: `[B]` bool, which rows had ended before the current token; None before the first.
        lengths: `[B]`, tokens of each row up to and with its end, the prompt included.
        notes: what each criterion remembers of this call.
        row: the row that is read alone, repeated over the batch, where rows grow apart; None: each is read.
    """

    def __init__(self, model: "OtterModel", config: GenerationConfig, drafts: Cache | None = None) -> None:
        self.model = model
        self.config = config
        self.drafts = drafts
        self.choosing = False
        self.reading: dict[str, Signal] = {}
        self.ended: Tensor | None = None
        self.lengths: Tensor | None = None
        self.notes: dict[Any, Any] = {}
        self.row: int | None = None
        self._verified: dict[str, Signal] = {}  # of the latest pass that verified drafts

    def read(self, input_ids: Tensor) -> dict[str, Signal] | None:
        """Returns the signals of a text by the latest pass, up to the position of the text's last token.

        It returns None where no pass has read the text yet, as where a draft is being made.
        """
        if self.drafts is None:
            return self.model.signals
        if self.model.signals:
            self._verified = self.model.signals
            self.model.read_signals({})  # whatever makes a draft must not read them
        ahead = self.drafts.get_seq_length() - input_ids.shape[1]  # tokens of the pass behind this one
        if ahead < 0:
            return None
        states = {name: signal.state for name, signal in self._verified.items()}
        return self.model.heads({name: state[:, : state.shape[1] - ahead] for name, state in states.items()})

    def finish(self) -> None:
        """Makes the signals of the latest pass the model's again."""
        if self._verified:
            self.model.read_signals({name: signal.state for name, signal in self._verified.items()})

    @contextmanager
    def reading_row(self, row: int) -> Iterator[None]:
        """Marks a row as the one that is read, inside the block."""
        self.row = row
        try:
            yield
        finally:
            self.row = None

    def end_rows(self, done: Tensor, length: int) -> None:
        """Notes which rows end with the current token, the text's last of so many."""
        if self.ended is None or self.lengths is None or len(self.ended) != len(done):
            self.ended = torch.zeros_like(done)
            self.lengths = torch.zeros_like(done, dtype=torch.long)
        self.lengths = self.lengths.masked_fill(~self.ended, length)
        self.ended = self.ended | done


class Processors(LogitsProcessorList):
    """Runs logits processors, and shows each of them the signals of the scores that it gets."""

    def __init__(self, processors: LogitsProcessorList, generation: Generation) -> None:
        super().__init__(processors)
        self._generation = generation

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        """Maps `[B, T]` tokens so far and `[B, V]` scores of the next to `[B, V]`."""
        generation = self._generation
        reading = generation.read(input_ids)
        generation.reading = reading or {}
        with _choosing(generation, reading is not None):
            for processor in self:
                # An earlier processor may have made a pass.
                with generation.model.show_signals(generation.reading):
                    scores = LogitsProcessorList([processor])(input_ids, scores, **kwargs)
        return scores


@contextmanager
def _choosing(generation: Generation, choosing: bool) -> Iterator[None]:
    outer, generation.choosing = generation.choosing, choosing
    try:
        yield
    finally:
        generation.choosing = outer


class _Padding(StoppingCriteria):
    """Ends no row. Transformers pads a row that has ended only beside a criterion with this attribute."""

    eos_token_id = None

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


class Criteria(StoppingCriteriaList):
    """Runs stopping criteria, and shows them the signals by which the latest token was chosen.

    A row that a signal has ended is padded, if there is a token for it.
    """

    def __init__(self, criteria: StoppingCriteriaList, generation: Generation) -> None:
        super().__init__(criteria)
        self._generation = generation
        if generation.config._pad_token_tensor is not None and any(getattr(each, "guards", False) for each in self):
            self.append(_Padding())

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Maps `[B, T]` tokens so far to `[B]` bool, which rows end."""
        with self._generation.model.show_signals(self._generation.reading):
            done: Tensor = super().__call__(input_ids, scores, **kwargs)
        self._generation.end_rows(done, input_ids.shape[1])
        return done

"""Ends responses by a signal: the base of the stops that read it token by token, and of the loops that replace a
response that was ended."""

import operator
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList

from otterlm.checks import shown
from otterlm.decoding.loop import Loop, Run
from otterlm.decoding.output import ReplacedOutput
from otterlm.decoding.rows import join_rows
from otterlm.errors import OtterError
from otterlm.generation import Criteria, Generation, Intervention, Request, Supports, bare
from otterlm.model import OtterModel
from otterlm.signals.base import Capability


class SignalStop(Intervention, StoppingCriteria):
    """Ends each sequence that its signal speaks against.

    For `generate(..., stopping_criteria=[...])`. The signal of a token is known when the next has been chosen, so the
    end comes one token late. Every call of `generate` starts again.

    Args:
        model: the model that generates.
        adapter_name: of the signal; may be left out where one adapter can do what is needed.
        needs: what the signal must be able to do.

    Attributes:
        stopped: `[B]` bool, which sequences of the latest call were ended by the signal.
    """

    supports = Supports(beams=False, drafts=False, unpadded=False)
    guards = True

    def __init__(self, model: OtterModel, adapter_name: str | None, needs: Capability) -> None:
        self.model: OtterModel = bare(model)
        self.adapter_name = self.model.adapter_name(adapter_name, needs)
        self.stopped: Tensor | None = None

    @abstractmethod
    def start(self, rows: int, device: torch.device) -> Any:
        """Returns what is remembered of so many rows before their first token."""

    @abstractmethod
    def judge(self, remembered: Any, signal: Any) -> tuple[Any, Tensor]:
        """Judges the token that the latest pass read.

        Args:
            remembered: what `start`, or the previous call, returned.
            signal: of the pass; its last position is the token's.

        Returns:
            What is to be remembered; and which rows are to end, `[B]` bool.
        """

    def end(self, remembered: Any, new: Tensor) -> Any:
        """Notes which rows end now, `[B]` bool; takes and returns what is remembered."""
        return remembered

    def keep(self, rows: Tensor) -> None:
        """Keeps some rows of the latest call, `[n]` indices, where only these are returned."""
        if self.stopped is not None:
            self.stopped = self.stopped[rows]

    def reads(self, model: OtterModel) -> str:
        """Returns the name of its adapter."""
        return self.adapter_name

    def begin(self, generation: Generation) -> None:
        """Forgets the previous call."""
        self.stopped = None

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Maps `[B, T]` tokens so far to `[B]` bool, which sequences are to end."""
        generation = self.model.generation
        if generation is None:
            raise OtterError(f"{self.name} reads the passes of one generation: generate with the OtterModel")
        # Several calls may run at a time, each in its thread.
        remembered, stopped = generation.notes.get(self, (None, None))
        if stopped is None:
            # The latest pass read the prompt; its signal is not the response's.
            stopped = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
            remembered = self.start(len(input_ids), input_ids.device)
        elif not self.off:
            remembered, stop = self.judge(remembered, self.model.signal(self.adapter_name))
            # After the end of a sequence there is only padding, which is not judged.
            new = stop & ~stopped if generation.ended is None else stop & ~generation.ended & ~stopped
            remembered = self.end(remembered, new)
            stopped = stopped | new
        generation.notes[self] = remembered, stopped
        self.stopped = stopped
        return stopped


def token_ids(tokens: Sequence[int]) -> list[int]:
    """Returns token ids as numbers.

    Raises:
        OtterError: there are none, or they are something else.
    """
    try:
        ids = [operator.index(token) for token in tokens]
    except (TypeError, ValueError) as error:
        raise OtterError(f"the replacement must be token ids, [7, 8], not {shown(tokens)}") from error
    if not ids or min(ids) < 0:
        raise OtterError("the replacement has no tokens" if not ids else f"the replacement holds {min(ids)}, no token")
    return ids


class Replacing(Loop):
    """The loop replaces a response that a stop ends.

    A streamer receives the response once it is complete: until then it may be replaced. A cache that the caller passed
    for the next turn is emptied where a response was replaced, so that the next turn reads the text again.

    Args:
        replacement: token ids of the response that replaces it.

    Raises:
        OtterError: it holds none, or something else.
    """

    supports = replace(Loop.supports, caches=True, synced=True)
    guards = True
    output = ReplacedOutput

    def __init__(self, replacement: Sequence[int]) -> None:
        self.replacement = token_ids(replacement)

    @abstractmethod
    def stop(self, model: OtterModel) -> SignalStop:
        """Makes the stop that ends responses of a model."""

    def check(self, model: OtterModel, request: Request) -> None:
        """Checks the call, see `Intervention`."""
        super().check(model, request)
        tokens = model.config.get_text_config(decoder=True).vocab_size
        if max(self.replacement) >= tokens:
            raise OtterError(f"the replacement holds {max(self.replacement)}, but the base has {tokens} tokens")

    def decode(self, run: Run) -> ReplacedOutput:
        """Decodes as the base does, and replaces what is stopped, see `Loop`."""
        stop = self.stop(run.model)
        stop.begin(run.generation)
        criteria = Criteria(StoppingCriteriaList([*run.criteria, stop]), run.generation)
        sequences = run.sample(stopping_criteria=criteria)
        assert stop.stopped is not None
        if stop.stopped.any():
            sequences = self._replace(run, sequences, stop.stopped)
            if run.user_cache is not None:
                run.user_cache.reset()  # it holds the response that was ended
        run.show_all(sequences[:, run.input_ids.shape[1] :])
        return ReplacedOutput(sequences=sequences, replaced=stop.stopped)

    def _replace(self, run: Run, sequences: Tensor, stopped: Tensor) -> Tensor:
        prompt = run.input_ids.shape[1]
        rows = [
            torch.cat((row[:prompt], row.new_tensor(self.replacement))) if replaced else row
            for row, replaced in zip(sequences, stopped.tolist(), strict=True)
        ]
        return join_rows(rows, run.config)

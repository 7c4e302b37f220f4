"""Ends a response whose reward falls under a threshold, and can replace it. This is a live guardrail."""

import math
import operator
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList

from otterlm.checks import LARGEST_PATIENCE, check_count, check_threshold, shown
from otterlm.decoding.loop import Loop, Run
from otterlm.decoding.output import ReplacedOutput
from otterlm.decoding.rows import join_rows
from otterlm.decoding.steering import count_under
from otterlm.errors import OtterError
from otterlm.generation import Criteria, Generation, Intervention, Request, Supports, bare
from otterlm.interventions import InterventionSettings
from otterlm.model import OtterModel
from otterlm.signals.base import Capability


class RewardStop(Intervention, StoppingCriteria):
    """Ends each sequence whose reward has been under a threshold for some tokens in a row.

    For `generate(..., stopping_criteria=[RewardStop(...)])`. The reward of a token is known when the next has been
    chosen, so the end comes one token late. Every call of `generate` starts again.

    Args:
        model: the model that generates.
        threshold: a reward; minus infinity never stops, and the tokens are the base's.
        patience: how many tokens in a row must be under it.
        adapter_name: of the reward; may be left out where there is one.

    Attributes:
        stopped: `[B]` bool, which sequences of the latest call were ended by reward.

    Raises:
        OtterError: a setting is out of range.
    """

    supports = Supports(beams=False, drafts=False, unpadded=False)
    guards = True

    def __init__(self, model: OtterModel, threshold: float, patience: int = 1, adapter_name: str | None = None) -> None:
        self.model: OtterModel = bare(model)
        self.threshold = check_threshold("threshold", threshold)
        self.patience = check_count("patience", patience, most=LARGEST_PATIENCE)
        self.adapter_name = self.model.adapter_name(adapter_name, Capability.PREFIX)
        self.off = self.threshold == -math.inf
        self.stopped: Tensor | None = None

    def reads(self, model: OtterModel) -> str:
        """Returns the name of its adapter."""
        return self.adapter_name

    def begin(self, generation: Generation) -> None:
        """Forgets the previous call."""
        self.stopped = None
        if generation.config._pad_token_tensor is not None:
            # Transformers pads a row that has ended only beside a criterion with this attribute.
            self.eos_token_id = generation.config._eos_token_tensor

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Maps `[B, T]` tokens so far to `[B]` bool, which sequences are to end."""
        generation = self.model.generation
        if generation is None:
            raise OtterError("RewardStop reads the passes of one generation: generate with the OtterModel")
        # Several calls may run at a time, each in its thread.
        under, stopped = generation.notes.get(self, (None, None))  # [B], tokens in a row, and which were ended
        if stopped is None:
            # The latest pass read the prompt; its reward is not the response's.
            stopped = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
            under = torch.zeros_like(stopped, dtype=torch.long)
        elif not self.off:
            reward = self.model.signal(self.adapter_name).prefix[:, -1]  # [B]
            under = count_under(under, reward, self.threshold)
            stop = under >= self.patience
            # After the end of a sequence there is only padding, which is not judged.
            stopped = stopped | (stop if generation.ended is None else stop & ~generation.ended)
        generation.notes[self] = under, stopped
        self.stopped = stopped
        return stopped


def _token_ids(tokens: Sequence[int]) -> list[int]:
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


class ReplaceStopped(Loop):
    """The loop replaces a response that `RewardStop` ends: `generate(..., custom_generate=ReplaceStopped(...))`.

    A streamer receives the response once it is complete: until then it may be replaced. A cache that the caller passed
    for the next turn is emptied where a response was replaced, so that the next turn reads the text again.

    Args:
        threshold, patience, adapter_name: as for `RewardStop`.
        replacement: token ids of the response that replaces it.

    Raises:
        OtterError: a setting is out of range.
    """

    supports = replace(Loop.supports, caches=True, synced=True)
    guards = True
    output = ReplacedOutput

    def __init__(
        self, threshold: float, replacement: Sequence[int], patience: int = 1, adapter_name: str | None = None
    ) -> None:
        self.threshold = check_threshold("threshold", threshold)
        self.replacement = _token_ids(replacement)
        self.patience = check_count("patience", patience, most=LARGEST_PATIENCE)
        self.adapter_name = adapter_name
        self.off = self.threshold == -math.inf

    def reads(self, model: OtterModel) -> str:
        """Returns the name of its adapter."""
        return model.adapter_name(self.adapter_name, Capability.PREFIX)

    def check(self, model: OtterModel, request: Request) -> None:
        """Checks the call, see `Intervention`."""
        super().check(model, request)
        tokens = model.config.get_text_config(decoder=True).vocab_size
        if max(self.replacement) >= tokens:
            raise OtterError(f"the replacement holds {max(self.replacement)}, but the base has {tokens} tokens")

    def decode(self, run: Run) -> ReplacedOutput:
        """Decodes as the base does, and replaces what is stopped, see `Loop`."""
        stop = RewardStop(run.model, self.threshold, self.patience, self.adapter_name)
        stop.begin(run.generation)
        criteria = Criteria(StoppingCriteriaList([*run.criteria, stop]), run.generation)
        sequences = run.sample(stopping_criteria=criteria)
        assert stop.stopped is not None
        if stop.stopped.any():
            sequences = self._replace(run, sequences, stop.stopped)
            if run.user_cache is not None:
                run.user_cache.reset()  # it holds the replaced text
        run.show_all(sequences[:, run.input_ids.shape[1] :])
        return ReplacedOutput(sequences=sequences, replaced=stop.stopped)

    def _replace(self, run: Run, sequences: Tensor, stopped: Tensor) -> Tensor:
        prompt = run.input_ids.shape[1]
        rows = [
            torch.cat((row[:prompt], row.new_tensor(self.replacement))) if replaced else row
            for row, replaced in zip(sequences, stopped.tolist(), strict=True)
        ]
        return join_rows(rows, run.config)


def make(model: OtterModel, adapter_name: str, settings: InterventionSettings) -> RewardStop:
    """Makes the stop of the registry, see `otterlm.interventions`."""
    return RewardStop(model, settings.threshold, settings.patience, adapter_name)

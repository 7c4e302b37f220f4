"""Stop: a response whose reward falls under a threshold is ended, and can be replaced. A live guardrail."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from otterlm.decoding.checks import check_count
from otterlm.errors import OtterError
from otterlm.model import OtterModel
from otterlm.signals.base import Capability


class RewardStop(StoppingCriteria):
    """Ends each sequence whose reward has been under a threshold for some tokens in a row.

    For `generate(..., stopping_criteria=[RewardStop(...)])`; every call needs a fresh one. The reward of a token is
    known when the next has been chosen, so the end comes one token late.

    Args:
        model: the model that generates.
        threshold: a reward; minus infinity never stops, and the tokens are the base's.
        patience: how many tokens in a row must be under it.
        adapter_name: whose reward; may be left out where there is one.

    Attributes:
        stopped: `[B]` bool, which sequences were ended by reward.

    Raises:
        OtterError: a setting is out of range.
    """

    def __init__(self, model: OtterModel, threshold: float, patience: int = 1, adapter_name: str | None = None) -> None:
        if not isinstance(threshold, int | float) or math.isnan(threshold):
            raise OtterError(f"the threshold must be a number, got {threshold!r}")
        self.model = model
        self.threshold = threshold
        self.patience = check_count("patience", patience)
        self.adapter_name = model.adapter_name(adapter_name, Capability.PREFIX)
        self.stopped: Tensor | None = None
        self._under: Tensor | None = None
        self._ended: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor | None, **kwargs: Any) -> Tensor:
        """`[B, T]` tokens so far to `[B]` bool, which sequences are to end."""
        if self.stopped is None or self._under is None or self._ended is None:
            # The latest pass read the prompt; its reward is not the response's.
            self.stopped = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
            self._under = torch.zeros_like(self.stopped, dtype=torch.long)
            self._ended = torch.zeros_like(self.stopped)
        else:
            low = self.model.signal(self.adapter_name).prefix[:, -1] < self.threshold
            self._under = torch.where(low, self._under + 1, 0)
            # Behind the end of a sequence there is only padding, which is not judged.
            self.stopped = self.stopped | ((self._under >= self.patience) & ~self._ended)
        ends = self.model.generation_config.eos_token_id
        if ends is not None:
            self._ended = self._ended | torch.isin(input_ids[:, -1], torch.as_tensor(ends, device=input_ids.device))
        return self.stopped


class ReplaceStopped:
    """A decoding loop, `generate(..., custom_generate=ReplaceStopped(...))`: a response that `RewardStop` ends gives
    way to another.

    Args:
        threshold, patience, adapter_name: as for `RewardStop`.
        replacement: token ids of the response put in its place.
    """

    def __init__(
        self, threshold: float, replacement: Sequence[int], patience: int = 1, adapter_name: str | None = None
    ) -> None:
        self.threshold = threshold
        self.replacement = list(replacement)
        self.patience = patience
        self.adapter_name = adapter_name
        if not self.replacement:
            raise OtterError("the replacement has no tokens")

    @torch.no_grad()
    def __call__(
        self,
        model: OtterModel,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        synced_gpus: bool = False,
        streamer: BaseStreamer | None = None,
        **model_kwargs: Any,
    ) -> Tensor:
        """Called by `generate`. Returns the sequences, `[B, T]`."""
        prompt = input_ids.shape[1]
        stop = RewardStop(model, self.threshold, self.patience, self.adapter_name)
        criteria = StoppingCriteriaList([*stopping_criteria, stop])
        output = model._sample(
            input_ids, logits_processor, criteria, generation_config, synced_gpus, streamer, **model_kwargs
        )
        sequences: Tensor = output if isinstance(output, Tensor) else output.sequences
        if stop.stopped is None or not stop.stopped.any():
            return sequences
        pad = generation_config._pad_token_tensor
        fill = int(pad) if pad is not None else self.replacement[-1]
        replaced = sequences.new_full((len(sequences), max(sequences.shape[1], prompt + len(self.replacement))), fill)
        replaced[:, : sequences.shape[1]] = sequences
        replaced[stop.stopped, prompt:] = fill
        replaced[stop.stopped, prompt : prompt + len(self.replacement)] = sequences.new_tensor(self.replacement)
        return replaced

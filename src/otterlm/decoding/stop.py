"""Ends a response whose reward falls under a threshold, and can replace it. This is a live guardrail."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from otterlm.checks import LARGEST_PATIENCE, check_count, check_threshold
from otterlm.decoding.ending import Replacing, SignalStop
from otterlm.decoding.steering import count_under
from otterlm.interventions import InterventionSettings
from otterlm.model import OtterModel
from otterlm.signals.base import Capability, PrefixSignal


class RewardStop(SignalStop):
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

    def __init__(self, model: OtterModel, threshold: float, patience: int = 1, adapter_name: str | None = None) -> None:
        super().__init__(model, adapter_name, Capability.PREFIX)
        self.threshold = check_threshold("threshold", threshold)
        self.patience = check_count("patience", patience, most=LARGEST_PATIENCE)
        self.off = self.threshold == -math.inf

    def start(self, rows: int, device: torch.device) -> Tensor:
        """Returns the tokens in a row under the threshold, `[B]`, see `SignalStop`."""
        return torch.zeros(rows, dtype=torch.long, device=device)

    def judge(self, remembered: Tensor, signal: PrefixSignal) -> tuple[Tensor, Tensor]:
        """Judges a token, see `SignalStop`."""
        under = count_under(remembered, signal.prefix[:, -1], self.threshold)
        return under, under >= self.patience


class ReplaceStopped(Replacing):
    """The loop replaces a response that `RewardStop` ends: `generate(..., custom_generate=ReplaceStopped(...))`.

    See `otterlm.decoding.ending.Replacing` for streamers and caches.

    Args:
        threshold, patience, adapter_name: as for `RewardStop`.
        replacement: token ids of the response that replaces it.

    Raises:
        OtterError: a setting is out of range.
    """

    def __init__(
        self, threshold: float, replacement: Sequence[int], patience: int = 1, adapter_name: str | None = None
    ) -> None:
        super().__init__(replacement)
        self.threshold = check_threshold("threshold", threshold)
        self.patience = check_count("patience", patience, most=LARGEST_PATIENCE)
        self.adapter_name = adapter_name
        self.off = self.threshold == -math.inf

    def reads(self, model: OtterModel) -> str:
        """Returns the name of its adapter."""
        return model.adapter_name(self.adapter_name, Capability.PREFIX)

    def stop(self, model: OtterModel) -> RewardStop:
        """Makes the stop, see `Replacing`."""
        return RewardStop(model, self.threshold, self.patience, self.adapter_name)


def make(model: OtterModel, adapter_name: str, settings: InterventionSettings) -> RewardStop:
    """Makes the stop of the registry, see `otterlm.interventions`."""
    return RewardStop(model, settings.threshold, settings.patience, adapter_name)

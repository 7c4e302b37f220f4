"""Decides by a guard: the alarm ends a running response, or replaces it; a prompt is judged before the first token."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from otterlm.decoding.ending import Replacing, SignalStop
from otterlm.decoding.hits import Hits
from otterlm.decoding.scoring import label_sequences
from otterlm.errors import OtterError
from otterlm.generation import Generation
from otterlm.interventions import InterventionSettings
from otterlm.model import OtterModel
from otterlm.signals.alarm import Alarm, Verdict, alarm_settings, never_rings, verdict
from otterlm.signals.base import Capability, ClassConfig, ClassSignal


@dataclass(frozen=True, slots=True)
class _Latest:
    """Holds what a stop remembers of one call.

    Attributes:
        alarm: finds hits.
        hits: `[B, window, A]` bool, which of the latest tokens were hits.
        ended_by: `[B]`, the index of the label that ended each row, -1 where none has.
    """

    alarm: Hits
    hits: Tensor
    ended_by: Tensor


class GuardStop(SignalStop):
    """Ends each sequence in which the alarm rings: `hits` of its latest `window` tokens reach a label's probability.

    For `generate(..., stopping_criteria=[GuardStop(model)])`. The labels of a token are known when the next has been
    chosen, so the end comes one token late. Every call of `generate` starts again.

    Args:
        model: the model that generates.
        alarm: from which probability on a token is a hit: a number for all labels, or labels to numbers; None: as the
            adapter was calibrated. Above 1 it never rings, and the tokens are the base's.
        hits, window: None: the adapter's.
        adapter_name: of the guard; may be left out where there is one.

    Attributes:
        stopped: `[B]` bool, which sequences of the latest call were ended by the guard.

    Raises:
        OtterError: a setting is out of range, or there is no such label.
    """

    def __init__(
        self,
        model: OtterModel,
        alarm: Alarm = None,
        hits: int | None = None,
        window: int | None = None,
        adapter_name: str | None = None,
    ) -> None:
        super().__init__(model, adapter_name, Capability.CLASSES)
        config: ClassConfig = self.model.adapter(self.adapter_name).config.signal  # type: ignore[assignment]
        self.settings = alarm_settings(config, alarm, hits, window)
        self.off = self.settings.off
        self._names = config.labels
        self._ended_by: Tensor | None = None

    @property
    def labels(self) -> list[str | None]:
        """Returns the label that ended each sequence of the latest call, or None."""
        names: list[str | None] = [*self.settings.alarms, None]
        return [] if self._ended_by is None else [names[index] for index in self._ended_by.tolist()]

    def begin(self, generation: Generation) -> None:
        """Forgets the previous call."""
        super().begin(generation)
        self._ended_by = None

    def start(self, rows: int, device: torch.device) -> _Latest:
        """Returns what is remembered before the first token, see `SignalStop`."""
        hits = torch.zeros(rows, self.settings.window, len(self.settings.alarms), dtype=torch.bool, device=device)
        self._ended_by = torch.full((rows,), -1, device=device)
        return _Latest(Hits(self.settings, self._names, device), hits, self._ended_by)

    def judge(self, remembered: _Latest, signal: ClassSignal) -> tuple[_Latest, Tensor]:
        """Judges a token, see `SignalStop`."""
        new = remembered.alarm.of(signal.probabilities[:, -1])  # [B, A]
        hits = torch.cat((remembered.hits[:, 1:], new[:, None]), dim=1)
        return replace(remembered, hits=hits), (hits.sum(dim=1) >= self.settings.hits).any(dim=-1)

    def end(self, remembered: _Latest, new: Tensor) -> _Latest:
        """Notes the labels, see `SignalStop`: of several the one with the most hits ends a row."""
        ended_by = torch.where(new, remembered.hits.sum(dim=1).argmax(dim=-1), remembered.ended_by)
        self._ended_by = ended_by
        return replace(remembered, ended_by=ended_by)

    def keep(self, rows: Tensor) -> None:
        """Keeps some rows, see `SignalStop`."""
        super().keep(rows)
        if self._ended_by is not None:
            self._ended_by = self._ended_by[rows]


class ReplaceGuarded(Replacing):
    """The loop replaces a response that `GuardStop` ends: `generate(..., custom_generate=ReplaceGuarded(tokens))`.

    See `otterlm.decoding.ending.Replacing` for streamers and caches.

    Args:
        replacement: token ids of the response that replaces it.
        alarm, hits, window, adapter_name: as for `GuardStop`.

    Raises:
        OtterError: a setting is out of range.
    """

    def __init__(
        self,
        replacement: Sequence[int],
        alarm: Alarm = None,
        hits: int | None = None,
        window: int | None = None,
        adapter_name: str | None = None,
    ) -> None:
        super().__init__(replacement)
        self.alarm, self.hits, self.window = alarm, hits, window
        self.adapter_name = adapter_name
        self.off = never_rings(alarm)

    def reads(self, model: OtterModel) -> str:
        """Returns the name of its adapter."""
        return model.adapter_name(self.adapter_name, Capability.CLASSES)

    def stop(self, model: OtterModel) -> GuardStop:
        """Makes the stop, see `Replacing`."""
        return GuardStop(model, self.alarm, self.hits, self.window, self.adapter_name)


def judge_prompt(
    model: OtterModel,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    adapter_name: str | None = None,
) -> list[Verdict]:
    """Judges prompts before anything is generated, in one pass over them.

    Args:
        model: with the guard.
        input_ids: `[B, T]`, as `generate` is given them, padded on either side.
        attention_mask: `[B, T]`, 0 at padding; all ones by default.
        adapter_name: of the guard; may be left out where there is one.

    Returns:
        A verdict a prompt, by the thresholds for whole texts.

    Raises:
        OtterError: the mask is not of these prompts, or a prompt has no tokens.
    """
    name = model.adapter_name(adapter_name, Capability.CLASSES)
    config: ClassConfig = model.adapter(name).config.signal  # type: ignore[assignment]
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    labels = label_sequences(model, input_ids, mask, name)  # [B, T, L]
    last = torch.where(mask != 0, torch.arange(mask.shape[1], device=mask.device), -1).amax(dim=1)  # [B]
    if bool((last < 0).any()):
        raise OtterError("a prompt has no tokens: there is nothing to judge")
    final = labels[torch.arange(len(labels), device=labels.device), last]  # [B, L]
    return [verdict(dict(zip(config.labels, row, strict=True)), config) for row in final.tolist()]


def make(model: OtterModel, adapter_name: str, settings: InterventionSettings) -> GuardStop:
    """Makes the guard's stop of the registry, see `otterlm.interventions`."""
    return GuardStop(model, settings.alarm, settings.hits, settings.window, adapter_name)

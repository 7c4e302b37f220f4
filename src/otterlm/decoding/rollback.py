"""Goes back to before an offence where a guard's alarm rings, and goes on with the label steered against. CARE does
this with a second model (Qwen3Guard, arXiv 2510.14276)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers.utils import ModelOutput

from otterlm.checks import check_count, check_weight
from otterlm.decoding.ends import unread_ends
from otterlm.decoding.hits import Hits
from otterlm.decoding.loop import Loop, Run
from otterlm.decoding.prompt import read_prompt
from otterlm.decoding.rows import Reading, join_rows, process_row, row_ends
from otterlm.generation import Request, Supports
from otterlm.generation.settings import check
from otterlm.interventions import InterventionSettings
from otterlm.masks import additive
from otterlm.model import OtterModel
from otterlm.signals.alarm import Alarm, AlarmSettings, alarm_settings, never_rings
from otterlm.signals.base import Capability, ClassConfig

ATTEMPTS = 8
"""How often a row goes back, where nothing else is asked for."""


@dataclass
class RollbackOutput(ModelOutput):
    """The output has the sequences, and how often they went back.

    Attributes:
        sequences: `[B, T]` tokens, the prompt included.
        rollbacks: of each row, the labels that it went back for, in order. None where no alarm can ring.
        stopped: of each row, the label of the offence that it ends before, which could not be avoided, or None.
        taken_back: of each row, the passages that were taken back, in order: how many tokens of the response came
            before each, and its tokens.
    """

    sequences: Tensor | None = None
    rollbacks: list[list[str]] | None = None
    stopped: list[str | None] | None = None
    taken_back: list[list[tuple[int, list[int]]]] | None = None


class GuardRollback(Loop):
    """The loop takes offences back: `model.generate(..., custom_generate=GuardRollback())`.

    Until the alarm rings the tokens are the base's own. Then the row goes back to some tokens before the first hit, and
    weight * log P(the text stays without the label) is added to the logits of its next tokens; the weight doubles with
    every further alarm of that label. After `attempts` alarms a row ends before the offence. No token that set off an
    alarm is returned. A streamer is shown tokens once no alarm can take them back.

    Args:
        weight: of the steering.
        back: tokens before the first hit that are taken back, too.
        attempts: how often a row may go back.
        alarm, hits, window: as for `otterlm.decoding.guard_stop.GuardStop`.
        adapter_name: of the guard; may be left out where there is one with vocabulary heads.

    Raises:
        OtterError: a setting is out of range.
    """

    supports = replace(Loop.supports, following=False, embeddings=False, batch_streamer=False, guard=False)
    output = RollbackOutput

    def __init__(
        self,
        weight: float = 1.0,
        back: int = 4,
        attempts: int = ATTEMPTS,
        alarm: Alarm = None,
        hits: int | None = None,
        window: int | None = None,
        adapter_name: str | None = None,
    ) -> None:
        self.weight = check_weight("weight", weight)
        self.back = check_count("back", back, least=0)
        self.attempts = check_count("attempts", attempts)
        self.alarm, self.hits, self.window = alarm, hits, window
        self.adapter_name = adapter_name
        self.off = never_rings(alarm)

    def reads(self, model: OtterModel) -> str:
        """Returns the name of its adapter."""
        return model.adapter_name(self.adapter_name, Capability.CLASSES | Capability.ADDS)

    def check(self, model: OtterModel, request: Request) -> None:
        """Checks the call, see `Intervention`."""
        super().check(model, request)
        if not self.off:
            check(replace(request, guarded=self.name), Supports(unpadded=False), self.name)  # a row may end early

    def decode(self, run: Run) -> RollbackOutput:
        """Decodes row by row, see `Loop`."""
        model, name = run.model, self.reads(run.model)
        config: ClassConfig = model.adapter(name).config.signal  # type: ignore[assignment]
        settings = alarm_settings(config, self.alarm, self.hits, self.window)
        alarm, ends = Hits(settings, config.labels, run.input_ids.device), unread_ends(model, name)
        prompt = read_prompt(run)
        seen = prompt.seen.bool()  # a token that was taken back stays in the cache, unseen
        rows = [GuardedRow(Reading.of(prompt.output, index, -1), settings, self.back) for index in range(len(seen))]
        while not all(row.ended for row in rows):
            token = torch.stack([self._next(run, rows[index], index, name) for index in range(len(rows))])  # [B, 1]
            slot = seen.shape[1]
            seen = torch.cat((seen, seen.new_ones(len(rows), 1)), dim=-1)
            read = torch.tensor([[len(row.tokens)] for row in rows], device=token.device)
            output = model(
                input_ids=token,
                attention_mask=additive(seen[:, None, None, :], model.base_model.dtype),
                position_ids=prompt.position[:, None] + read,
                past_key_values=prompt.cache,
            )
            signal: Any = output.signals[name]
            hits = alarm.of(signal.probabilities[:, -1])  # [B, A]
            # All that decides about the rows comes from the device at once.
            for index, (chosen, *hit) in enumerate(torch.cat((token, hits.to(token)), dim=1).tolist()):
                row = rows[index]
                if row.ended:
                    continue
                hit = [0] * len(hit) if chosen in ends else hit  # the text was judged before its end
                row.read(chosen, Reading.of(output, index, -1), slot, hit)
                label = row.ringing()
                if label is not None:
                    seen[index, row.go_back(label, self.attempts)] = False
                else:
                    row.go_on()
                    whole = torch.cat((run.input_ids[index], row.response(run.input_ids)))
                    row.ended = row_ends(run, whole, index)
            if len(rows) == 1:
                self._show(run, rows[0])
        whole_rows = [torch.cat((ids, row.response(ids))) for ids, row in zip(run.input_ids, rows, strict=True)]
        return RollbackOutput(
            sequences=join_rows(whole_rows, run.config),
            rollbacks=[row.rollbacks for row in rows],
            stopped=[row.stopped for row in rows],
            taken_back=[row.taken_back for row in rows],
        )

    def _next(self, run: Run, row: "GuardedRow", index: int, name: str) -> Tensor:
        """Chooses the next token of a row, `[1]`; anything for a row that has ended."""
        if row.ended:
            return run.input_ids[index, -1:]
        reading = replace(row.reading, logits=row.reading.logits.float())  # large weights overflow half precision
        for label, times in row.steered.items():
            (signal,) = run.model.heads({name: reading.states[name][None, None]}).values()  # [1, 1, d + d']
            weight = self.weight * 2 ** (times - 1)
            scores: Tensor = signal.vocabulary(label=label)[0]  # type: ignore[attr-defined]
            reading = replace(reading, logits=reading.logits + weight * scores.float())
        whole = torch.cat((run.input_ids[index], row.response(run.input_ids)))
        scores = process_row(run, whole, reading, index)
        return torch.multinomial(scores.softmax(dim=-1), 1) if run.config.do_sample else scores.argmax()[None]

    def _show(self, run: Run, row: "GuardedRow") -> None:
        """Shows a streamer the tokens that can no longer be taken back."""
        for token in row.new_final():
            run.show(run.input_ids.new_tensor([token]))


class GuardedRow:
    """A row has its tokens so far, with all that is needed to go back.

    Args:
        reading: of the pass that read the prompt.
        settings: of the alarm.
        back: tokens before the first hit that are taken back, too.

    Attributes:
        tokens: of the response.
        ended: whether it has ended.
        stopped: the label of the offence that it ended before.
        rollbacks: the labels that it went back for.
        taken_back: the passages that were taken back, see `RollbackOutput`.
        steered: how often, by label.
    """

    def __init__(self, reading: Reading, settings: AlarmSettings, back: int) -> None:
        self.tokens: list[int] = []
        self.ended = False
        self.stopped: str | None = None
        self.rollbacks: list[str] = []
        self.taken_back: list[tuple[int, list[int]]] = []
        self.steered: dict[str, int] = {}
        self._settings = settings
        self._back = back
        self._readings: list[Reading | None] = [reading]  # of each token, after that of the prompt
        self._slots: list[int] = []
        self._hits: list[Sequence[int]] = []  # of each label of the alarm, 1 or 0
        self._final = self._shown = 0

    @property
    def reading(self) -> Reading:
        """Returns that of the pass that read the last token."""
        reading = self._readings[-1]
        assert reading is not None
        return reading

    def response(self, like: Tensor) -> Tensor:
        """Returns the tokens as a tensor."""
        return like.new_tensor(self.tokens)

    def read(self, token: int, reading: Reading, slot: int, hits: Sequence[int]) -> None:
        """Adds a token that a pass has read into a slot of the cache, and which of the A labels it hits, 1 or 0."""
        self.tokens.append(token)
        self._readings.append(reading)
        self._slots.append(slot)
        self._hits.append(hits)

    def go_on(self) -> None:
        """Takes the last token, as no alarm rings. One that rings at the next token, or later, has its first hit inside
        the window, so that older tokens are final."""
        self._final = max(self._final, len(self.tokens) + 1 - self._settings.window - self._back)
        if self._final:
            self._readings[self._final - 1] = None  # nothing goes back so far, and logits are large

    def ringing(self) -> str | None:
        """Returns the label whose alarm rings at the last token, if one does."""
        counts = [sum(hits) for hits in zip(*self._hits[-self._settings.window :], strict=True)]
        best = max(counts)
        return list(self._settings.alarms)[counts.index(best)] if best >= self._settings.hits else None

    def go_back(self, label: str, attempts: int) -> list[int]:
        """Goes back to before the first hit of a label; after so many attempts the row ends there.

        Returns:
            The slots of the cache to hide.
        """
        column = list(self._settings.alarms).index(label)
        start = max(0, len(self._hits) - self._settings.window)
        first = next(index for index in range(start, len(self._hits)) if self._hits[index][column])
        if len(self.rollbacks) == attempts:
            self.ended, self.stopped = True, label
        else:
            self.rollbacks.append(label)
            self.steered[label] = self.steered.get(label, 0) + 1
            first -= self._back
        length = max(self._final, first)
        hidden = self._slots[length:]
        self.taken_back.append((length, self.tokens[length:]))
        self.tokens, self._slots, self._hits = self.tokens[:length], self._slots[:length], self._hits[:length]
        self._readings = self._readings[: length + 1]
        return hidden

    def new_final(self) -> list[int]:
        """Returns the tokens that have become final since the last call; at the end all that are left."""
        end = len(self.tokens) if self.ended else self._final
        new, self._shown = self.tokens[self._shown : end], end
        return new


def make(model: OtterModel, adapter_name: str, settings: InterventionSettings) -> GuardRollback:
    """Makes the rollback of the registry, see `otterlm.interventions`."""
    alarm = settings.alarm, settings.hits, settings.window
    return GuardRollback(settings.weight, settings.back, ATTEMPTS, *alarm, adapter_name)

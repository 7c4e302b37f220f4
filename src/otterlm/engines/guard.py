"""Decides what an engine does with the numbers of a request: which it returns, and where a guard ends the response.

The numbers of a text are known when its next token is chosen, so that token is never returned. The prompt does not end
a response, and a response is not ended before it has the tokens that the request wants at least.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Protocol

from otterlm.decoding.steering import count_under
from otterlm.engines.readings import Layout, Readings, Row
from otterlm.engines.requests import Served
from otterlm.engines.rewards import PROMPT, STOPPED, Numbers, stop_reason
from otterlm.engines.settings import Settings
from otterlm.signals.alarm import AlarmSettings, verdict


class Guard(Protocol):
    """Judges a response token by token.

    Attributes:
        reason: the stop reason of the response that it ended.
        label: that ended it; empty for a reward.
    """

    reason: str
    label: str

    def judge(self, row: Row) -> bool:
        """Judges the text that a row is of. Returns whether it is to end."""


class RewardGuard:
    """Ends a response when its reward has been under a threshold for some tokens in a row.

    Args:
        settings: of the request.
    """

    reason = STOPPED
    label = ""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._under = 0

    def judge(self, row: Row) -> bool:
        """Judges a text, see `Guard`; the first number of the row is its reward."""
        self._under = count_under(self._under, row[0], self._settings.threshold)
        return self._under >= self._settings.patience


class LabelGuard:
    """Ends a response when an alarm rings, as `otterlm.decoding.guard_stop.GuardStop` does.

    Args:
        settings: of the alarm.
        layout: of the rows.
    """

    def __init__(self, settings: AlarmSettings, layout: Layout) -> None:
        self._settings = settings
        self._layout = layout
        self._latest: deque[list[bool]] = deque()
        self._hits = [0] * len(settings.alarms)  # of the latest tokens
        self.reason = self.label = ""

    def judge(self, row: Row) -> bool:
        """Judges a text, see `Guard`. Of several labels the one with the most hits ends it."""
        probabilities, alarms = self._layout.probabilities(row), self._settings.alarms
        self._latest.append([probabilities[name] >= alarm for name, alarm in alarms.items()])
        past = self._latest.popleft() if len(self._latest) > self._settings.window else [False] * len(alarms)
        self._hits = [count + new - old for count, new, old in zip(self._hits, self._latest[-1], past, strict=True)]
        hits = dict(zip(alarms, self._hits, strict=True))
        self.label = max(hits, key=lambda name: hits[name])
        self.reason = stop_reason(self.label)
        return hits[self.label] >= self._settings.hits


class Track:
    """Follows one request, where an engine decides which tokens stay.

    Args:
        served: what the engine serves.
        arguments: extra arguments of the request, checked before.
        least: tokens that the request wants at least.

    Attributes:
        reason: the stop reason of the response, once it is ended here.
    """

    def __init__(self, served: Served, arguments: Mapping[str, Any] | None, least: int) -> None:
        self._served = served
        self._settings = settings = served.settings(arguments)
        self._least = least
        self._layouts = {name: Layout.of(served, name) for name in served.watched(settings)}
        self._guard: Guard | None = None
        if settings.guard is not None:
            alarm, layout = settings.alarm, self._layouts[settings.guard]
            self._guard = RewardGuard(settings) if alarm is None else LabelGuard(alarm, layout)
        self._waiting: Numbers = {}  # of the prompt
        self._prompt: dict[str, list[Row]] = {}
        self._latest: Mapping[str, Row] = {}
        self._ended: dict[str, tuple[str, str]] = {}
        self.reason: str | None = None

    def read_prompt(self, start: int, readings: Readings) -> None:
        """Takes what was read of the texts that end with tokens of the prompt, from `start` on."""
        for name, rows in readings.items():
            self._prompt.setdefault(name, [])[start:] = rows

    def judge(self, length: int, readings: Readings, count: int) -> int | None:
        """Judges the tokens that were chosen now.

        Args:
            length: of the response before them, in tokens.
            readings: what was read of the text before each of them.
            count: how many they are; there may be more rows.

        Returns:
            How many of them stay in the response, if it ends here; None if it goes on.
        """
        if not count:
            return None
        end = self._judge(length, readings, count)
        self._latest = {name: readings[name][count - 1 if end is None else end] for name in self._layouts}
        return end

    def _judge(self, length: int, readings: Readings, count: int) -> int | None:
        if length == 0 and self._refuses({name: readings[name][0] for name in self._layouts}):
            return 0
        if self._guard is None or self._settings.guard is None:
            return None
        for index, row in enumerate(readings[self._settings.guard][:count]):
            if length + index > 0 and self._guard.judge(row) and length + index >= self._least:
                self.reason = self._guard.reason
                self._ended = {"stops": (self._settings.guard, self._guard.label)}
                return index
        return None

    def _refuses(self, rows: Mapping[str, Row]) -> bool:
        """Judges the prompt. Returns whether the response is to have no token."""
        if self._settings.prompt or self._settings.prompt_tokens:
            self._waiting = {PROMPT: self._of_prompt(rows)}
        if (name := self._settings.refuse) is None:
            return False
        probabilities = self._probabilities(name, rows)
        flagged = [
            label for label, least in self._served.guards[name].thresholds.items() if probabilities[label] >= least
        ]
        if flagged:
            label = max(flagged, key=lambda label: probabilities[label])
            self.reason, self._ended = stop_reason(label, of_prompt=True), {"refused_prompts": (name, label)}
        return bool(flagged)

    def _of_prompt(self, rows: Mapping[str, Row]) -> Numbers:
        """Returns the prompt's rewards and verdicts, and the numbers beside its tokens, if they were read."""
        numbers: Numbers = {"rewards": {name: rows[name][0] for name in self._served.numbers}}
        if guards := self._served.guards:
            verdicts = {name: verdict(self._probabilities(name, rows), each) for name, each in guards.items()}
            numbers["guards"] = {name: asdict(each) for name, each in verdicts.items()}
        if self._settings.prompt_tokens:
            numbers["tokens"] = self._columns(self._prompt, ("rewards", "guards", "spans"))
        return numbers

    def _probabilities(self, name: str, rows: Mapping[str, Row]) -> dict[str, float]:
        return self._layouts[name].probabilities(rows[name])

    def waiting(self) -> Numbers:
        """Returns the numbers of the prompt, once, if the request wants them."""
        numbers, self._waiting = self._waiting, {}
        return numbers

    def leaving(self, readings: Readings, count: int) -> Numbers:
        """Returns the numbers that the request wants, of the first `count` tokens; once, those of the prompt."""
        wanted: tuple[str, ...] = ("rewards",) if self._settings.rewards else ()
        wanted += ("guards", "spans") if self._settings.guards else ()
        return self.waiting() | self._columns({name: readings[name][:count] for name in self._layouts}, wanted)

    def _columns(self, readings: Readings, wanted: Sequence[str]) -> Numbers:
        """Returns what was read beside some tokens: by what it is, by adapter and by label."""
        read = [(name, rows, self._layouts[name]) for name, rows in readings.items()]
        columns: Numbers = {}
        if "rewards" in wanted:
            columns["rewards"] = {name: [row[0] for row in rows] for name, rows, layout in read if layout.rewards}
        if "guards" in wanted:
            columns["guards"] = {name: layout.by_label(rows) for name, rows, layout in read if layout.labels}
        if "spans" in wanted:
            columns["spans"] = {name: layout.by_span(rows) for name, rows, layout in read if layout.spans}
        return {name: numbers for name, numbers in columns.items() if numbers}

    def end(self, by_guard: bool = False) -> dict[str, Any]:
        """Says how the response ended: its latest `rewards` and the probabilities of `guards`, by adapter.

        Args:
            by_guard: a guard ended it. Then the adapter and the label stand under `stops`, or `refused_prompts`.
        """
        layouts = [(name, row, self._layouts[name]) for name, row in self._latest.items()]
        rewards = {name: row[0] for name, row, layout in layouts if layout.rewards}
        guards = {name: layout.probabilities(row) for name, row, layout in layouts if layout.labels}
        return {"rewards": rewards, "guards": guards, **(self._ended if by_guard else {})}

"""Reads the numbers of the rows that a step samples from, in a worker, for the requests that want them.

The scheduler sends every request's parameters once, when it enters a worker. The numbers come from the states of the
model's latest `compute_logits`, and are copied to the host while the step goes on.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from otterlm.engines.requests import Served
from otterlm.signals.base import Capability


class Watcher:
    """Belongs to one model of one worker.

    Args:
        model: gives the signals, see `models.Otter`.
        served: what requests are checked against.
    """

    def __init__(self, model: Any, served: Served) -> None:
        self._model = model
        self._served = served
        self._wanted: dict[str, tuple[str, ...]] = {}  # adapters, by request
        self._rows: dict[str, dict[str, range]] = {}  # of the latest step: by adapter, by request
        self._copies: dict[str, Tensor] = {}

    def schedule(self, entering: Iterable[tuple[str, Any]], leaving: Iterable[str]) -> None:
        """Updates the requests for the next step.

        Args:
            entering: new requests, with their extra arguments.
            leaving: requests that ended.
        """
        for request in leaving:
            self._wanted.pop(request, None)
        for request, arguments in entering:
            self._wanted[request] = self._served.watched(self._served.settings(arguments))

    def sample(self, requests: Sequence[str], drafts: Sequence[int]) -> None:
        """Reads the numbers of the rows that are sampled from now.

        Each request has one row, and one more for each draft that is verified, in the order of the batch.
        """
        self._model.sampled = self._model.states
        self._rows, start = {}, 0
        for request, count in zip(requests, drafts, strict=True):
            rows = range(start, start := start + count + 1)
            for name in self._wanted.get(request, ()):
                self._rows.setdefault(name, {})[request] = rows
        self._copies = {
            name: self._read(name, [row for each in rows.values() for row in each]) for name, rows in self._rows.items()
        }

    def _read(self, name: str, rows: list[int]) -> Tensor:
        """Reads an adapter's numbers at some rows, `[n, C]`, see `otterlm.engines.readings.Layout`."""
        signal, can = self._model.signal(name, rows), self._served.signals[name]
        parts = [signal.prefix] if Capability.PREFIX in can else []
        if Capability.CLASSES in can:
            parts += [*signal.probabilities.unbind(dim=-1), *signal.span_probabilities.unbind(dim=-1)]
        return torch.cat(parts, dim=-1).to("cpu", non_blocking=True)

    def take(self) -> "Copies":
        """Returns the numbers of the latest step, once."""
        copies, self._rows, self._copies = Copies(self._rows, self._copies), {}, {}
        return copies


class Copies:
    """Holds numbers that are being copied to the host.

    Args:
        rows: by adapter, by request: the rows of the step.
        values: by adapter, `[n, C]`, a row of numbers for each of these rows.
    """

    def __init__(self, rows: dict[str, dict[str, range]], values: dict[str, Tensor]) -> None:
        self._rows = rows
        self._values = values

    def __bool__(self) -> bool:
        return bool(self._values)

    def by_request(self) -> dict[str, dict[str, list[list[float]]]]:
        """Returns the numbers by request, by adapter, see `otterlm.engines.readings`; the copies must be complete."""
        numbers: dict[str, dict[str, list[list[float]]]] = {}
        for name, rows in self._rows.items():
            values = iter(self._values[name].tolist())
            for request, each in rows.items():
                numbers.setdefault(request, {})[name] = [next(values) for _ in each]
        return numbers

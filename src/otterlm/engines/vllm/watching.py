"""Reads the numbers of the rows that a step samples from, in a worker, for the requests that want them.

The scheduler sends every request's parameters once, when it enters a worker. The numbers come from the states of the
model's latest `compute_logits`, and are copied to the host while the step goes on.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from otterlm.engines.requests import Served
from otterlm.engines.vllm.rows import Step, rows_of
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
        self._tokens = 0
        self._wanted: dict[str, tuple[str, ...]] = {}  # adapters, by request
        self._rows: dict[str, dict[str, range]] = {}  # of the latest step: by adapter, by request
        self._copies: dict[str, Tensor] = {}
        self._lengths: dict[str, int] = {}  # of the prompts that are to be read
        self._prompts: dict[str, tuple[int, dict[str, Tensor]]] = {}  # of the latest step

    def serve(self, served: Served) -> None:
        """Checks requests against other adapters from now on."""
        self._served = served

    def schedule(self, entering: Iterable[tuple[str, Any, int]], leaving: Iterable[str], tokens: int) -> None:
        """Updates the requests for the next step.

        Args:
            entering: new requests, with their extra arguments and the lengths of their prompts.
            leaving: requests that ended.
            tokens: how many the model is to read.
        """
        self._tokens = tokens
        for request in leaving:
            self._wanted.pop(request, None)
            self._lengths.pop(request, None)
        for request, arguments, length in entering:
            settings = self._served.settings(arguments)
            self._wanted[request] = self._served.watched(settings)
            if settings.prompt_tokens:
                self._lengths[request] = length

    def assign(self, slots: Tensor) -> None:
        """Says which slot the request of each row has, `[N]`, before the second runner computes the logits."""
        self._model.slots = slots

    def sample(self, requests: Sequence[str], drafts: Sequence[int], seeded: Collection[int] = ()) -> None:
        """Reads the numbers of the rows that are sampled from now.

        Args:
            requests: in the order of the batch.
            drafts: how many are verified, of each request.
            seeded: the requests, by index, that sample with a seed of their own.
        """
        self._model.sampled, self._model.rows = self._model.states, rows_of(drafts)
        self._model.step = Step([*requests], self._tokens, {*seeded})
        self._rows = {}
        for request, rows in zip(requests, self._model.rows, strict=True):
            for name in self._wanted.get(request, ()):
                self._rows.setdefault(name, {})[request] = rows
        self._copies = {
            name: self._read(name, self._model.signal(name, [row for each in rows.values() for row in each]))
            for name, rows in self._rows.items()
        }

    @property
    def reading(self) -> list[str]:
        """Returns the requests whose prompts are to be read."""
        return [*self._lengths]

    def read_prompt(self, request: str, hidden: Tensor, start: int) -> None:
        """Reads the numbers of a part of a prompt.

        Args:
            request: one of `reading`.
            hidden: rows of the tokens that were read now, `[T, d + d'_1 + ...]`; some may come after the prompt.
            start: how many tokens of the request were read before.
        """
        rows = hidden[: max(0, self._lengths[request] - start)]
        if len(rows):
            signals = self._model.signals(rows, self._wanted[request])
            self._prompts[request] = start, {name: self._read(name, each) for name, each in signals.items()}

    def _read(self, name: str, signal: Any) -> Tensor:
        """Reads an adapter's numbers at some rows, `[n, C]`, see `otterlm.engines.readings.Layout`."""
        can = self._served.signals[name]
        parts = [signal.prefix] if Capability.PREFIX in can else []
        if Capability.CLASSES in can:
            parts += [*signal.probabilities.unbind(dim=-1), *signal.span_probabilities.unbind(dim=-1)]
        return torch.cat(parts, dim=-1).to("cpu", non_blocking=True)

    def take(self) -> "Copies":
        """Returns the numbers of the latest step, once."""
        copies = Copies(self._rows, self._copies, self._prompts)
        self._rows, self._copies, self._prompts = {}, {}, {}
        return copies


class Copies:
    """Holds numbers that are being copied to the host.

    Args:
        rows: by adapter, by request: the rows of the step.
        values: by adapter, `[n, C]`, a row of numbers for each of these rows.
        prompts: by request, where the part of its prompt begins, and by adapter, `[t, C]`, what was read of it.
    """

    def __init__(
        self,
        rows: dict[str, dict[str, range]],
        values: dict[str, Tensor],
        prompts: dict[str, tuple[int, dict[str, Tensor]]],
    ) -> None:
        self._rows = rows
        self._values = values
        self._prompts = prompts

    def __bool__(self) -> bool:
        return bool(self._values or self._prompts)

    def of_prompts(self) -> dict[str, tuple[int, dict[str, list[list[float]]]]]:
        """Returns the numbers of prompts, by request; the copies must be complete."""
        return {
            request: (start, {name: values.tolist() for name, values in read.items()})
            for request, (start, read) in self._prompts.items()
        }

    def by_request(self) -> dict[str, dict[str, list[list[float]]]]:
        """Returns the numbers by request, by adapter, see `otterlm.engines.readings`; the copies must be complete."""
        numbers: dict[str, dict[str, list[list[float]]]] = {}
        for name, rows in self._rows.items():
            values = iter(self._values[name].tolist())
            for request, each in rows.items():
                numbers.setdefault(request, {})[name] = [next(values) for _ in each]
        return numbers

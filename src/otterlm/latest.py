"""Shows the signals of a model's latest pass in this thread, which interventions read between two tokens."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from otterlm.errors import OtterError
from otterlm.named import NamedAdapters
from otterlm.signals.base import Signal


class LatestSignals(NamedAdapters):
    """A model with named adapters shows the signals of its latest pass."""

    @property
    def signals(self) -> dict[str, Signal]:
        """Returns the signals of the latest pass in this thread, by adapter. A `LogitsProcessor` reads them."""
        return self._thread.state.signals

    @contextmanager
    def show_signals(self, signals: dict[str, Signal]) -> Iterator[None]:
        """Makes `signals` return these inside the block, in this thread."""
        outer, self._thread.state.signals = self._thread.state.signals, signals
        try:
            yield
        finally:
            self._thread.state.signals = outer

    def check_read(self, input_ids: Tensor) -> None:
        """Checks that the latest pass in this thread ended with the last of these tokens, `[B, T]`.

        Raises:
            OtterError: it read something else.
        """
        read, length = self._thread.state.read
        known = length in (None, input_ids.shape[1])
        if read is not None and not (known and torch.equal(read, input_ids[:, -read.shape[1] :])):
            raise OtterError("the latest pass of this OtterModel read another text: generate with the OtterModel")

    def signal(self, name: str | None = None) -> Any:
        """Returns one of `signals`.

        Raises:
            OtterError: as for `adapter_name`, or the latest pass gave none of this adapter.
        """
        name = self.adapter_name(name)
        if name not in self.signals:
            raise OtterError(f"the latest pass gave no signal {name!r}: generate with the OtterModel, the adapter on")
        return self.signals[name]

"""Grows a response, and measures what its tokens take."""

import statistics
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Generic, Self, TypeVar

import torch

from otterlm.model import OtterModel
from otterlm.playground.alternatives import ShownToken

Chosen = TypeVar("Chosen")


class Draws:
    """The random numbers of one response: they depend on the seed alone, whatever is drawn between its tokens.

    Args:
        device: the model's.
        seed: of the first number.
    """

    def __init__(self, device: torch.device, seed: int) -> None:
        self._device = None if device.type == "cpu" else device
        devices = [torch.device("cpu"), device][: 1 if self._device is None else 2]
        self._states = [torch.Generator(each).manual_seed(seed).get_state() for each in devices]

    def __enter__(self) -> Self:
        self._swap()
        return self

    def __exit__(self, *_: object) -> None:
        self._swap()

    def _swap(self) -> None:
        """Gives the process this response's state, and keeps that of the process."""
        inner, self._states = self._states, [torch.get_rng_state()]
        torch.set_rng_state(inner[0])
        if self._device is not None:
            module = torch.get_device_module(self._device)
            where = () if self._device.type == "mps" else (self._device,)  # there is one of these
            self._states.append(module.get_rng_state(*where))
            module.set_rng_state(inner[1], *where)


class Response(Generic[Chosen]):
    """One response as it grows.

    Args:
        model: generates.
        adapters: that are on.
        chosen: gives what is chosen for each token, which is timed.
        read: makes a token of it, which is not.
        draws: its random numbers.
        turn: held by the response that grows, so that none is timed while another shares the cores.
        loop: whether a decoding loop chooses, which may show several tokens at once.

    Attributes:
        tokens: so far.
        ended: whether there are no more.
    """

    def __init__(
        self,
        model: OtterModel,
        adapters: list[str],
        chosen: Iterator[Chosen],
        read: Callable[[Chosen], ShownToken],
        draws: Draws,
        turn: threading.Lock,
        loop: bool = False,
    ) -> None:
        self.tokens: list[ShownToken] = []
        self.ended = False
        self.loop = loop
        self._seconds: list[float] = []
        self._model = model
        self._adapters = adapters
        self._chosen = chosen
        self._read = read
        self._draws = draws
        self._turn = turn

    def grow(self) -> bool:
        """Reads one more token, from whatever thread; False at the end."""
        with self._turn, self._model.use_adapters(self._adapters), self._draws:
            started = time.perf_counter()
            chosen = next(self._chosen, None)
            seconds = time.perf_counter() - started
            self.ended = chosen is None
            if chosen is not None:
                self._seconds.append(seconds)
                self.tokens.append(self._read(chosen))
        return not self.ended

    @property
    def speed(self) -> float | None:
        """Returns tokens a second so far, the prompt's reading and other responses' turns left out where they can be;
        None before it is known."""
        timed = self._seconds if self.loop else self._seconds[1:]
        return len(timed) / sum(timed) if timed else None

    def slowdown(self, reference: "Response[Any]") -> float | None:
        """Returns the extra time of a token, as a share of what one of a reference takes.

        Medians are compared, without the first tokens, which read the prompt. Of a loop it is the means of whole
        responses, the prompts' reading included. None until enough is known.
        """
        ours, theirs = self._seconds, reference._seconds
        if self.loop:
            whole = self.ended and reference.ended and ours and theirs
            return statistics.mean(ours) / statistics.mean(theirs) - 1 if whole else None
        if min(len(ours), len(theirs)) < 2:
            return None
        return statistics.median(ours[1:]) / statistics.median(theirs[1:]) - 1

"""Measures wall-clock time in turn, A B C, A B C, ..., so that other work of the machine affects all alike."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from otterlm.progress import track


@dataclass(frozen=True, slots=True)
class Seconds:
    """The seconds are the times of one method's rounds."""

    rounds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Returns the median of the rounds."""
        return statistics.median(self.rounds)

    def over(self, others: "Seconds") -> list[float]:
        """Returns the seconds of each round / those of another method in the same round."""
        return [mine / theirs for mine, theirs in zip(self.rounds, others.rounds, strict=True)]

    @property
    def spread(self) -> float:
        """Returns (longest - shortest) / median."""
        return (max(self.rounds) - min(self.rounds)) / self.median


def take_turns(
    methods: Mapping[str, Callable[[], object]], warm_up: Mapping[str, Callable[[], object]], rounds: int
) -> dict[str, Seconds]:
    """Times every method `rounds` times, in turn.

    Args:
        methods: the calls, by name.
        warm_up: calls before them, once and untimed: the same with little to do.
        rounds: how often each method is timed.
    """
    for call in warm_up.values():
        call()
    taken: dict[str, list[float]] = {name: [] for name in methods}
    for _ in track(range(rounds), "timing"):
        for name, call in methods.items():
            started = time.perf_counter()
            call()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            taken[name].append(time.perf_counter() - started)
    return {name: Seconds(tuple(seconds)) for name, seconds in taken.items()}

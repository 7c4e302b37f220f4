"""Shows progress on stderr, so that stdout stays the command's result: bars on a terminal, else a line now and then."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from rich import progress
from rich.console import Console
from rich.text import Text

if TYPE_CHECKING:
    from torch import nn

T = TypeVar("T")

INTERVAL = 30.0
"""Seconds between two lines in a log."""
REMEMBERED = 600.0
"""Seconds of the past that the remaining time is estimated from. A step of some runs takes a minute."""

_STDERR = Console(stderr=True, markup=False, emoji=False, highlight=False)


class Lines(progress.Progress):
    """Lines are printed instead of a bar where stderr is no terminal, so that a log says how far a long run is."""

    def __init__(self, disable: bool) -> None:
        # Without a thread: a line comes when something is done.
        settings: dict[str, Any] = {"auto_refresh": False, "speed_estimate_period": REMEMBERED}
        super().__init__(*_columns(), console=_STDERR, disable=True, **settings)
        self._silent = disable
        self._next = time.monotonic() + INTERVAL

    def update(self, task_id: progress.TaskID, **changes: Any) -> None:
        """Updates a task, see `rich.progress.Progress`, and perhaps prints a line."""
        super().update(task_id, **changes)
        self._print(task_id)

    def advance(self, task_id: progress.TaskID, advance: float = 1) -> None:
        """Advances a task, see `rich.progress.Progress`, and perhaps prints a line."""
        super().advance(task_id, advance)
        self._print(task_id)

    def _print(self, task_id: progress.TaskID) -> None:
        now = time.monotonic()
        if self._silent or now < self._next:
            return
        self._next = now + INTERVAL
        task = self._tasks[task_id]
        done = f"{task.completed:.0f}" if task.total is None else f"{task.completed:.0f} of {task.total:.0f}"
        left = "" if task.time_remaining is None else f", {_duration(task.time_remaining)} left"
        _STDERR.print(Text(f"{task.description}: {done}, {_duration(task.elapsed or 0)} gone{left}"), soft_wrap=True)


def _duration(seconds: float) -> str:
    """Returns seconds as 0:01:05."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"


def bar(disable: bool = False) -> progress.Progress:
    """Makes a bar with count, elapsed and remaining time. It disappears when it is full.

    Where stderr is no terminal, a line comes every half minute.
    """
    if disable or not _STDERR.is_terminal:
        return Lines(disable)
    return progress.Progress(*_columns(), console=_STDERR, transient=True, speed_estimate_period=REMEMBERED)


def _columns() -> tuple[progress.ProgressColumn, ...]:
    return (
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        progress.TimeRemainingColumn(),
    )


def track(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Yields the items, with a bar. `total` is how many there are, of items that do not know their number."""
    with bar() as shown:
        yield from shown.track(items, total=total, description=description)


def note(text: str) -> None:
    """Prints a line on stderr, before something that takes long and has no bar."""
    _STDERR.print(Text(text), soft_wrap=True)


@contextmanager
def library_bars() -> Iterator[None]:
    """Hides the bars of Transformers and the hub inside the block where stderr is no terminal: a log repeats them."""
    from transformers import modeling_gguf_pytorch_utils as gguf
    from transformers.utils import logging

    if _STDERR.is_terminal or not logging.is_progress_bar_enabled():
        yield
        return
    bars: Any = gguf.tqdm  # the one bar that does not ask Transformers' switch
    logging.disable_progress_bar()
    gguf.tqdm = logging.tqdm
    try:
        yield
    finally:
        gguf.tqdm = bars
        logging.enable_progress_bar()


@contextmanager
def counted_passes(base: "nn.Module", most: int, description: str) -> Iterator[None]:
    """Shows a bar inside the block that counts the passes of a base.

    Args:
        base: the model that runs there.
        most: so many passes at most, such as the tokens of a response.
        description: of the bar.
    """
    with bar() as shown:
        task = shown.add_task(description, total=most)
        handle = base.register_forward_hook(lambda *_: shown.advance(task))
        try:
            yield
        finally:
            handle.remove()

"""Shows progress bars on stderr, so that stdout stays the command's result."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich import progress
from rich.console import Console

T = TypeVar("T")

_STDERR = Console(stderr=True)


def bar(disable: bool = False) -> progress.Progress:
    """Makes a bar with count, elapsed and remaining time. It disappears when it is full."""
    columns = (
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        progress.TimeRemainingColumn(),
    )
    return progress.Progress(*columns, console=_STDERR, transient=True, disable=disable or not _STDERR.is_terminal)


def track(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Yields the items, with a bar. `total` is how many there are, of items that do not know their number."""
    with bar() as shown:
        yield from shown.track(items, total=total, description=description)

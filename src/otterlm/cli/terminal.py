"""Prints results to the terminal: every text unchanged, whatever it contains, and a path in one piece."""

import codecs
import io
import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

WIDE = 10_000
"""A file or a pipe, which is no terminal, has so many columns: nothing need be wrapped in it."""


# A response may contain [/INST] or :smile:, and a folder's name may be out [final].
AS_IT_IS: dict[str, Any] = {"markup": False, "emoji": False, "highlight": False}
console = Console(**AS_IT_IS)


def show_coloured(coloured: Text, plain: str | None) -> None:
    """Prints a text in colours where the terminal has any, and plain elsewhere; None prints nothing there."""
    if console.is_terminal and not console.no_color:
        console.print(coloured, soft_wrap=True)
    elif plain is not None:
        print(plain)


Cell = str | Text


def show_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
    """Prints a table under a line of title. Its first column is of words, the others are of numbers.

    What is wider than the terminal goes below, in tables that repeat the first column.
    """
    shown = console if console.is_terminal else Console(**AS_IT_IS, width=WIDE)
    print(title)
    for numbers in _parts(columns, rows, shown.width):
        table = Table()
        for index in (0, *numbers):
            table.add_column(columns[index], justify="right" if index else "left")
        for row in rows:
            table.add_row(*(row[index] for index in (0, *numbers)))
        shown.print(table)


def _parts(columns: Sequence[str], rows: Sequence[Sequence[Cell]], width: int) -> list[list[int]]:
    """Splits the columns of numbers, by index, into tables that fit a width."""

    def columns_wide(index: int) -> int:
        cells = (columns[index], *(str(row[index]) for row in rows))
        return 3 + max(cell_len(line) for cell in cells for line in cell.split("\n"))  # with its frame

    parts: list[list[int]] = [[]]
    first = used = 1 + columns_wide(0)
    for index in range(1, len(columns)):
        wide = columns_wide(index)
        if parts[-1] and used + wide > width:
            parts.append([])
            used = first
        parts[-1].append(index)
        used += wide
    return parts


def with_interval(row: Mapping[str, Any], name: str, form: str) -> str:
    """Returns a number of a row with its 95% interval, `name_ci95`, such as 1.04 (0.98 to 1.09)."""
    value, bounds = row[name], row[f"{name}_ci95"]
    if value is None or bounds is None:
        return "" if value is None else f"{value:{form}}"
    return f"{value:{form}} ({bounds[0]:{form}} to {bounds[1]:{form}})"


def print_json(value: Any) -> None:
    """Prints one JSON object. NaN, which JSON lacks, becomes null."""
    finite = _finite(value)
    text = json.dumps(finite, ensure_ascii=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:  # the terminal's locale, or a path of other bytes
        text = json.dumps(finite)
    print(text)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def prepare_streams() -> None:
    """Makes every text printable. Text that the locale cannot encode is escaped; a path of other bytes keeps them."""
    # Rich would exit with 1, also from Typer's help; `main` decides.
    Console.on_broken_pipe = _broken_pipe  # type: ignore[method-assign, assignment]
    codecs.register_error("otterlm.as_it_is", _as_it_is)
    for name, errors in (("stdout", "otterlm.as_it_is"), ("stderr", "backslashreplace")):
        if getattr(sys, name) is None:  # it was closed
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - until the process ends
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)


def quieten_libraries() -> None:
    """Silences what libraries would print beside the results. On a terminal their bars vanish when they are full."""
    import datasets
    import transformers

    if "TRANSFORMERS_VERBOSITY" not in os.environ:
        transformers.utils.logging.set_verbosity_error()  # Otter refuses what this warns of, such as missing weights
    if not sys.stderr.isatty():
        for library in (transformers.utils.logging, datasets):
            library.disable_progress_bar()
    transformers.utils.logging.set_tqdm_hook(lambda make, args, settings: make(*args, **(settings | {"leave": False})))


def _broken_pipe(_: Console) -> None:
    raise BrokenPipeError


def _as_it_is(error: UnicodeError) -> tuple[str | bytes, int]:
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeError:
        return codecs.lookup_error("backslashreplace")(error)


def drop_output() -> None:
    """Drops what cannot be written to stdout, which Python would complain of when it ends."""
    try:
        sys.stdout.flush()
    except OSError:
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

"""Runs a program to its end, `otter` or a script of `benchmarks/` and `recipes/`, and says what went wrong."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import typer

from otterlm.cli.failures import explain
from otterlm.cli.interrupts import INTERRUPTED
from otterlm.cli.terminal import drop_output

BAD_INPUT = 2


def run_script(main: Callable[[], None]) -> NoReturn:
    """Runs a script, see `run_program`. It is called by its file's name."""

    def run() -> int:
        main()
        return 0

    run_program(Path(sys.argv[0]).name, run)


def run_program(name: str, run: Callable[[], int]) -> NoReturn:
    """Runs a program and exits with its code. Bad input is one line on stderr and exit code 2; an interrupt is 130."""
    try:
        code = run()
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except BrokenPipeError:  # of `head`, for instance, which has read enough
        code = 0
    except Exception as error:
        line = explain(error)
        if line is None:
            raise
        print(f"{name}: {line}", file=sys.stderr)
        code = BAD_INPUT
    if code == INTERRUPTED:  # also what Typer makes of Ctrl-C, in silence
        print(f"{name}: interrupted", file=sys.stderr)
    drop_output()
    sys.exit(code)

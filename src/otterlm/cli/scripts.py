"""Runs the scripts of `benchmarks/` and `recipes/`."""

import sys
from collections.abc import Callable
from pathlib import Path

from otterlm.cli import BAD_INPUT
from otterlm.cli.failures import explain
from otterlm.cli.interrupts import INTERRUPTED


def run_script(main: Callable[[], None]) -> None:
    """Runs a script. As with `otter`, bad input is one line on stderr and exit code 2, and so is an interrupt (130)."""
    name = Path(sys.argv[0]).name
    try:
        main()
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except Exception as error:
        line = explain(error)
        if line is None:
            raise
        print(f"{name}: {line}", file=sys.stderr)
        sys.exit(BAD_INPUT)

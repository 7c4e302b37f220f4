"""Defines the `otter` command, with one file a verb. Its libraries are loaded when a verb needs them."""

import sys

from otterlm.cli.interrupts import INTERRUPTED, ending_at_once

BAD_INPUT = 2


def main() -> None:
    """Runs the command. Bad input is one line on stderr and exit code 2."""
    with ending_at_once():
        import typer

        from otterlm.cli.failures import explain
        from otterlm.cli.terminal import drop_output
        from otterlm.cli.verbs import run
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
        print(f"otter: {line}", file=sys.stderr)
        code = BAD_INPUT
    if code == INTERRUPTED:  # also what Typer makes of Ctrl-C, in silence
        print("otter: interrupted", file=sys.stderr)
    drop_output()
    sys.exit(code)

"""Defines the `otter` command, with one file a verb. Its libraries are loaded when a verb needs them."""

from otterlm.cli.interrupts import ending_at_once


def main() -> None:
    """Runs the command, see `run_program`."""
    with ending_at_once():
        from otterlm.cli.scripts import run_program
        from otterlm.cli.verbs import run
    run_program("otter", run)

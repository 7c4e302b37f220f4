"""The first lines of the `otter` command: the libraries take seconds to load, and Ctrl-C ends them in one line, too.

A package of its own, because importing anything of `otterlm` loads them.
"""

import os
import signal
import sys
from types import FrameType

INTERRUPTED = 130


def main() -> None:
    """Loads and runs `otterlm.cli.main`."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)
    from otterlm.cli import main as run

    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    run()


def _leave(signal_number: int, frame: FrameType | None) -> None:
    """Ends the process at once. An exception would go through the middle of an import, which may swallow it."""
    print("otter: interrupted", file=sys.stderr, flush=True)
    os._exit(INTERRUPTED)

"""Ctrl-C while the libraries load, which takes seconds."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

INTERRUPTED = 130


@contextmanager
def ending_at_once() -> Iterator[None]:
    """Inside the block, Ctrl-C ends the process in one line, unless somebody handles it.

    An exception would go through the middle of an import, which may swallow it.
    """
    ours = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )
    if ours:
        signal.signal(signal.SIGINT, _leave)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _leave(signal_number: int, frame: FrameType | None) -> None:
    print("otter: interrupted", file=sys.stderr, flush=True)
    os._exit(INTERRUPTED)

"""Handles Ctrl-C while the libraries load, which takes seconds."""

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
    """Lets Ctrl-C end the process in one line, inside the block, unless another handler is set.

    An exception would go through the middle of an import, which may swallow it.
    """
    is_default = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )
    if is_default:
        signal.signal(signal.SIGINT, _leave)
    try:
        yield
    finally:
        if is_default:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _leave(signal_number: int, frame: FrameType | None) -> None:
    print("otter: interrupted", file=sys.stderr, flush=True)
    os._exit(INTERRUPTED)

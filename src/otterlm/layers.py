"""Parses the option that names the widened blocks."""

import re

from otterlm.errors import OtterError


def parse_layers(text: str | None) -> tuple[int, ...] | None:
    """Returns the indices that `4,8`, `10-19` or `11-29:2` names; None, for all blocks, of None.

    Raises:
        OtterError: it is none of these forms.
    """
    if text is None:
        return None
    layers: set[int] = set()
    for piece in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+)(?::([1-9]\d*))?)?\s*", piece)
        if match is None:
            raise OtterError(f"--layers takes numbers and ranges such as 4,8 or 11-29:2, got {text!r}")
        first, last, step = match.groups()
        layers |= set(range(int(first), int(last or first) + 1, int(step or 1)))
    if not layers:
        raise OtterError(f"--layers {text!r} names no block")
    return tuple(sorted(layers))

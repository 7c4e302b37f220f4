"""The options that give an adapter its shape."""

import re
from typing import Annotated

import typer

from otterlm.errors import OtterError

HiddenSize = Annotated[int, typer.Option(help="d', inserted hidden channels.")]
Heads = Annotated[int, typer.Option(help="H', extra attention heads a block.")]
KvHeads = Annotated[int, typer.Option(help="Extra key/value heads a block.")]
Units = Annotated[int, typer.Option("--intermediate-size", help="f', extra FFN units a block.")]
Layers = Annotated[
    str | None, typer.Option(help="Widened blocks, such as 4,8,12 or 11-29:2 (every second); default all.")
]
Rank = Annotated[int, typer.Option("--vocabulary-rank", help="Rank of the vocabulary head; 0 for none.")]


def parse_layers(text: str | None) -> tuple[int, ...] | None:
    """`4,8`, `10-19` or `11-29:2` as indices; None for all.

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

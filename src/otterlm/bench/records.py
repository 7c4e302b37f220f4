"""Results prompt by prompt, in a file that an interrupted run goes on with."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from otterlm.errors import OtterError
from otterlm.files import whole_lines
from otterlm.progress import track

Item = TypeVar("Item")


def measured(
    items: Sequence[Item],
    measure: Callable[[Item], dict[str, Any]],
    path: Path | None,
    identity: dict[str, Any],
    warm_up: Callable[[], object] | None = None,
) -> list[dict[str, Any]]:
    """Measures items one after the other.

    Args:
        items: what to measure.
        measure: an item to what JSON can hold.
        path: a JSON lines file for the results, added to item by item; what it holds is not measured again. None: none.
        identity: what results depend on; kept in the file's first line.
        warm_up: called first, if anything is left to measure.

    Raises:
        OtterError: the file is of another run.
    """
    found: list[dict[str, Any]] = []
    head = json.dumps(identity, sort_keys=True)
    if path is not None and path.exists():
        text = path.read_text(encoding="utf-8")
        first, *lines = whole_lines(text).splitlines() or [""]
        if first != head:
            raise OtterError(f"{path} holds results of other settings: delete or move it")
        found = [json.loads(line) for line in lines]
        if whole_lines(text) != text:
            path.write_text(whole_lines(text), encoding="utf-8")
    elif path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(head + "\n", encoding="utf-8")
    if warm_up is not None and len(found) < len(items):
        warm_up()
    for item in track(items[len(found) :], "measuring"):
        found.append(measure(item))
        if path is not None:
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(found[-1]) + "\n")
    return found

"""Runs items one by one and stores their results in a JSON lines file, from which an interrupted run resumes."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from otterlm.errors import OtterError
from otterlm.files import hold, whole_lines, write_text
from otterlm.identity import Identity, check
from otterlm.progress import track

Item = TypeVar("Item")


def run_resumable(
    items: Sequence[Item],
    run: Callable[[Item], Any],
    path: Path | None,
    identity: Identity,
    description: str,
    warm_up: Callable[[], object] | None = None,
) -> list[Any]:
    """Runs items one after the other.

    Args:
        items: what to run.
        run: an item to a result that JSON can hold.
        path: a JSON lines file: the identity, then a result a line. Results in it are not computed again. None: no
            file.
        identity: what the results depend on, see `otterlm.identity`; the items are part of it.
        description: of the progress bar.
        warm_up: called first, if any item is left to run.

    Returns:
        The results, as JSON gives them back.

    Raises:
        OtterError: the file belongs to another run, cannot be written, or another process is writing it.
    """
    if path is None:
        return _run_rest(items, run, [], None, description, warm_up)
    results = _read(path, identity)
    if path.exists() and len(results) == len(items):
        return results
    with hold(path):
        results = _read(path, identity)  # again: the process that held it may have added some
        if not results:
            write_text(path, _head(identity))
        _cut_torn_line(path)
        return _run_rest(items, run, results, path, description, warm_up)


def _run_rest(
    items: Sequence[Item],
    run: Callable[[Item], Any],
    results: list[Any],
    path: Path | None,
    description: str,
    warm_up: Callable[[], object] | None,
) -> list[Any]:
    """Runs the items that have no result yet, and adds theirs to `results` and to the file."""
    if warm_up is not None and len(results) < len(items):
        warm_up()
    for item in track(items[len(results) :], description):
        line = json.dumps(run(item))
        if path is not None:
            _add_line(path, line)
        results.append(json.loads(line))
    return results


def _add_line(path: Path, line: str) -> None:
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
    except OSError as error:
        raise OtterError(f"{path} could not be written: {error.strerror or error}") from error


def _cut_torn_line(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    if text != whole_lines(text):
        write_text(path, whole_lines(text))


def _head(identity: Identity) -> str:
    return json.dumps({"identity": identity}) + "\n"


def _read(path: Path, identity: Identity) -> list[Any]:
    """Returns the results that a file holds. A last line that was torn by a kill does not count."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise OtterError(f"{path} is not a file of results ({error}): delete or move it") from error
    if _head(identity).startswith(text):  # it is empty, or cut before the first result
        return []
    try:
        head, *results = [json.loads(line) for line in whole_lines(text).split("\n")[:-1]]
        saved = head["identity"]
    except (ValueError, KeyError, TypeError) as error:
        raise OtterError(f"{path} is not a file of results ({error}): delete or move it") from error
    check(path, saved, identity)
    return results

"""Turns rows of any number into examples: in several processes, onto the disk, and once for all runs that read them."""

import functools
import itertools
import multiprocessing
import os
import signal
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import tokenizers
import transformers
from transformers import PreTrainedTokenizerBase

from otterlm.errors import OtterError
from otterlm.files import write_files
from otterlm.identity import identity, of_data, of_tokenizer
from otterlm.progress import track
from otterlm.smollm2 import cache_folder
from otterlm.training.data.packing import Example
from otterlm.training.data.rows import Row
from otterlm.training.data.stored_examples import ExampleFile, StoredExamples, in_memory, write_examples
from otterlm.training.data.tokens import Limits, RowEncoder, no_rows

IN_MEMORY = 4000
"""The examples of up to so many rows are not written to the disk."""

TOKENS_GB = 10
"""The files of tokens take so many GB at most; `OTTER_TOKENS_GB` sets another limit."""

AT_ONCE = 64
"""So many rows go to a process together."""


def stored_tokens(
    rows: Collection[Row], tokenizer: PreTrainedTokenizerBase, limits: Limits, workers: int = 0
) -> StoredExamples:
    """Turns rows into examples, which `otterlm.training.data.tokens.tokenize` would do in memory.

    Those of many rows are kept in Otter's cache folder, in a file named by a digest of the rows and of all that makes
    tokens of them. Other runs, and other processes, read them there.

    Args:
        rows: read once, and once more for a digest unless they have one (`otterlm.training.data.stored_items`).
        tokenizer: with its chat template.
        limits: tokens of a prompt and of a response.
        workers: processes that encode; 0: this one.

    Raises:
        OtterError: a row cannot be encoded, no row is left, or the file cannot be written.
    """
    encoded = functools.partial(_encoded, rows, tokenizer, limits, workers)
    if len(rows) <= IN_MEMORY:
        examples = in_memory(encoded())
    else:
        special = sorted(tokenizer.all_special_tokens)  # plain text in a turn, and what ends a response
        parts = {"tokenizer": of_tokenizer(tokenizer), "special": special, "end": tokenizer.eos_token}
        depends = identity("tokens", rows=of_data(rows), **parts, code=_code())
        name = of_data([depends, asdict(limits)])["sha256"]
        path = cache_folder() / "tokens" / f"{name[:40]}.arrow"
        if path.exists():
            with suppress(OSError):  # of another user, whose cache this one may read
                path.touch()  # the time of the latest use
        else:
            write_files(path.parent, {path.name: lambda unfinished: _write(encoded(), unfinished)})
            make_room(path)
        file = ExampleFile(path)
        examples = StoredExamples(file, range(len(file.rows)))
    if not examples:
        raise no_rows()
    return examples


def make_room(newest: Path) -> None:
    """Removes the files of tokens that were not used for longest, until all together take `OTTER_TOKENS_GB` at most.

    The newest stays. A process that reads a file goes on reading it.

    Raises:
        OtterError: the environment variable is no number.
    """
    setting = os.environ.get("OTTER_TOKENS_GB", str(TOKENS_GB))
    try:
        left = float(setting) * 1e9 - newest.stat().st_size
    except ValueError as error:
        raise OtterError(f"OTTER_TOKENS_GB must be a size in GB, such as {TOKENS_GB}, got {setting!r}") from error
    others = [path for path in newest.parent.glob("*.arrow") if path != newest]
    facts = [(path.stat(), path) for path in others]
    for fact, path in sorted(facts, key=lambda each: each[0].st_mtime, reverse=True):
        left -= fact.st_size
        if left < 0:
            path.unlink(missing_ok=True)


def _write(examples: Iterator[Example], path: Path) -> None:
    with path.open("wb") as file:
        write_examples(examples, file)


def _encoded(
    rows: Collection[Row], tokenizer: PreTrainedTokenizerBase, limits: Limits, workers: int
) -> Iterator[Example]:
    if not workers:
        yield from RowEncoder(tokenizer, limits).examples(enumerate(track(rows, "tokenizing", len(rows))))
        return
    numbered = enumerate(rows)
    groups = iter(lambda: list(itertools.islice(numbered, AT_ONCE)), [])
    with multiprocessing.Pool(workers, _begin, (tokenizer, limits)) as pool:
        for group in track(pool.imap(_encode, groups), "tokenizing", -(-len(rows) // AT_ONCE)):
            yield from group


_ENCODER: list[RowEncoder] = []
"""Holds the encoder of a worker process."""


def _begin(tokenizer: PreTrainedTokenizerBase, limits: Limits) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes: the first ends the others
    _ENCODER[:] = [RowEncoder(tokenizer, limits)]


def _encode(group: list[tuple[int, Row]]) -> list[Example]:
    return list(_ENCODER[0].examples(group))


@functools.cache
def _code() -> list[str]:
    """Returns what tokens depend on beside the data: the versions of the libraries, and the code of this folder."""
    sources = (path.read_text(encoding="utf-8") for path in sorted(Path(__file__).parent.glob("*.py")))
    return [transformers.__version__, tokenizers.__version__, of_data(sources)["sha256"]]

"""Stores numbers beside every token of some examples, too many for memory, in one mapped file, a row a token."""

import json
import mmap
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from otterlm.errors import OtterError
from otterlm.files import hold, write_text
from otterlm.identity import Identity, check
from otterlm.progress import track
from otterlm.training.data.packing import Batch, Example, bucket_count, length_buckets


class TokenFile:
    """The file holds `[tokens, width]` numbers. Once all are written, a JSON file beside it identifies them.

    Args:
        path: of the file.
        examples: all that will be read.
        width: numbers a token.
        dtype: of the numbers.
        identity: what the numbers depend on, see `otterlm.identity`; the examples are part of it.
        numbers: computes those of some examples, `[B, T, width]`; called only if the file does not hold them yet.
        batch_size: examples a call.
        description: of the progress bar.

    Raises:
        OtterError: the file is of another run, does not fit on the disk, or another process is writing it.
    """

    def __init__(
        self,
        path: Path,
        examples: Sequence[Example],
        width: int,
        dtype: torch.dtype,
        identity: Identity,
        numbers: Callable[[Sequence[Example]], Tensor],
        batch_size: int,
        description: str,
    ) -> None:
        self._starts, tokens = {}, 0
        for example in examples:
            self._starts[example.row] = tokens
            tokens += len(example)
        mark, size = path.with_suffix(".json"), tokens * width * dtype.itemsize
        if not _finished(path, mark, size, identity):
            with hold(path):
                if not _finished(path, mark, size, identity):  # another process may have been first
                    mark.unlink(missing_ok=True)
                    _reserve(path, size)
                    self._rows = _mapped(path, tokens, width, dtype)
                    for group in track(
                        length_buckets(examples, batch_size), description, bucket_count(examples, batch_size)
                    ):
                        self._write(group, numbers(group))
                    write_text(mark, json.dumps(identity))
        self._rows = _mapped(path, tokens, width, dtype)

    def _write(self, group: Sequence[Example], numbers: Tensor) -> None:
        numbers = numbers.to("cpu", self._rows.dtype)
        for row, example in zip(numbers, group, strict=True):
            start = self._starts[example.row]
            self._rows[start : start + len(example)] = row[: len(example)]

    def read(self, batch: Batch) -> Tensor:
        """Returns the numbers of a packed batch, `[B, T, width]` in memory."""
        starts = torch.tensor([self._starts[row] for row in batch.rows.tolist()])[:, None]  # [B, 1]
        # Padding repeats an example's first token: a state of zeros has no norm, and would be blown up by 1 / eps.
        positions = torch.arange(batch.segments.shape[1]) * (batch.segments >= 0).cpu()  # [B, T]
        return self._rows[starts + positions]


def _finished(path: Path, mark: Path, size: int, identity: Identity) -> bool:
    """Returns whether a file holds all numbers.

    Without a mark, or cut, the file is made again. One of another run is refused.
    """
    if not mark.exists():
        return False
    try:
        saved = json.loads(mark.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OtterError(f"{mark} is damaged ({error}); delete it to make {path.name} anew") from error
    check(mark, saved, identity)
    return path.exists() and path.stat().st_size == size


def _mapped(path: Path, tokens: int, width: int, dtype: torch.dtype) -> Tensor:
    # Not torch.from_file, which takes only paths that are UTF-8.
    with path.open("r+b") as file:
        memory = mmap.mmap(file.fileno(), tokens * width * dtype.itemsize)
    return torch.frombuffer(memory, dtype=dtype).view(-1, width)


def _reserve(path: Path, size: int) -> None:
    """Reserves a file's space on the disk.

    Written through a map, a full disk would kill the process without a message.
    """
    try:
        with path.open("ab") as file:
            file.truncate(size)
            if hasattr(os, "posix_fallocate"):  # macOS has none
                os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        failure = f"{path} could not be written: {error.strerror or error}"
        raise OtterError(f"{failure}; it takes {size / 2**30:.1f} GiB") from error

"""Stores numbers beside every token of some examples, too many for memory, in one mapped file, a row a token."""

import array
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

AT_ONCE = 64 << 20
"""After so many bytes, what was read or written of the map is given back: until then it counts as this process's
memory. What was written stays with the system, which brings it to the disk."""


class TokenFile:
    """The file holds `[tokens, width]` numbers. Once all are written, a JSON file beside it identifies them.

    All rows have one width, so a plain map gives tensors without a copy, and a row is found by its number alone. Of the
    examples only where they start is in memory, 16 bytes each.

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
        rows, starts, tokens = array.array("q"), array.array("q"), 0
        for example in examples:
            rows.append(example.row)
            starts.append(tokens)
            tokens += len(example)
        self._numbers, order = torch.tensor(rows, dtype=torch.long).sort()
        self._starts = torch.tensor(starts, dtype=torch.long)[order]
        self._touched = 0
        mark, size = path.with_suffix(".json"), tokens * width * dtype.itemsize
        if not _finished(path, mark, size, identity):
            with hold(path):
                if not _finished(path, mark, size, identity):  # another process may have been first
                    mark.unlink(missing_ok=True)
                    _reserve(path, size)
                    self._memory, self._rows = _mapped(path, tokens, width, dtype)
                    for group in track(
                        length_buckets(examples, batch_size), description, bucket_count(examples, batch_size)
                    ):
                        self._write(group, numbers(group))
                    write_text(mark, json.dumps(identity))
        self._memory, self._rows = _mapped(path, tokens, width, dtype)

    def _starts_of(self, rows: Sequence[int]) -> Tensor:
        """Returns where examples begin, `[n]`, by their rows."""
        return self._starts[torch.searchsorted(self._numbers, torch.tensor(rows, dtype=torch.long))]

    def _touch(self, tokens: int) -> None:
        """Counts what is read or written, and gives it back now and then."""
        self._touched += tokens * self._rows.shape[1] * self._rows.element_size()
        if self._touched > AT_ONCE and hasattr(mmap, "MADV_DONTNEED"):
            self._memory.madvise(mmap.MADV_DONTNEED)
            self._touched = 0

    def _write(self, group: Sequence[Example], numbers: Tensor) -> None:
        numbers = numbers.to("cpu", self._rows.dtype)
        starts = self._starts_of([example.row for example in group]).tolist()
        for row, example, start in zip(numbers, group, starts, strict=True):
            self._rows[start : start + len(example)] = row[: len(example)]
        self._touch(sum(map(len, group)))

    def read(self, batch: Batch) -> Tensor:
        """Returns the numbers of a packed batch, `[B, T, width]` in memory."""
        starts = self._starts_of(batch.rows.tolist())[:, None]  # [B, 1]
        # Padding repeats an example's first token: a state of zeros has no norm, and would be blown up by 1 / eps.
        positions = torch.arange(batch.segments.shape[1]) * (batch.segments >= 0).cpu()  # [B, T]
        read = self._rows[starts + positions]
        self._touch(positions.numel())
        return read


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


def _mapped(path: Path, tokens: int, width: int, dtype: torch.dtype) -> tuple[mmap.mmap, Tensor]:
    # Not torch.from_file, which takes only paths that are UTF-8.
    with path.open("r+b") as file:
        memory = mmap.mmap(file.fileno(), tokens * width * dtype.itemsize)
    return memory, torch.frombuffer(memory, dtype=dtype).view(-1, width)


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

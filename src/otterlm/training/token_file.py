"""Numbers beside every token of some examples, too many for memory: one file, a row a token, mapped."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from otterlm.errors import OtterError
from otterlm.files import write_text
from otterlm.training.packing import Batch, Example


class TokenFile:
    """A file of `[tokens, width]` numbers. Beside it, a JSON file says what they are, once all are written.

    Args:
        path: of the file.
        examples: all that will be asked for.
        width: numbers a token.
        dtype: of the numbers.
        identity: what else they depend on.

    Attributes:
        finished: whether it holds the numbers of these examples already; else they are to be written.

    Raises:
        OtterError: it does not fit on the disk.
    """

    def __init__(
        self, path: Path, examples: Sequence[Example], width: int, dtype: torch.dtype, identity: Mapping[str, Any]
    ) -> None:
        self._starts, tokens = {}, 0
        for example in examples:
            self._starts[example.row] = tokens
            tokens += len(example)
        texts = repr([(e.row, e.prefix, e.branches) for e in examples])
        self._identity = json.dumps({**identity, "examples": hashlib.sha256(texts.encode()).hexdigest()})
        self._mark = path.with_suffix(".json")
        size = tokens * width * dtype.itemsize
        path.parent.mkdir(parents=True, exist_ok=True)
        known = self._mark.exists() and self._mark.read_text() == self._identity
        self.finished = known and path.exists() and path.stat().st_size == size
        if not self.finished:
            self._mark.unlink(missing_ok=True)
            _reserve(path, size)
        self._rows = torch.from_file(str(path), shared=True, size=tokens * width, dtype=dtype).view(-1, width)

    def write(self, group: Sequence[Example], numbers: Tensor) -> None:
        """Writes the numbers of packed examples, `[B, T, width]`."""
        numbers = numbers.to("cpu", self._rows.dtype)
        for row, example in zip(numbers, group, strict=True):
            start = self._starts[example.row]
            self._rows[start : start + len(example)] = row[: len(example)]

    def finish(self) -> None:
        """All is written."""
        write_text(self._mark, self._identity)
        self.finished = True

    def read(self, batch: Batch) -> Tensor:
        """The numbers of a packed batch, `[B, T, width]` in memory."""
        starts = torch.tensor([self._starts[row] for row in batch.rows.tolist()])[:, None]  # [B, 1]
        # Padding repeats an example's first token: a state of zeros has no norm, and would be blown up by 1 / eps.
        places = torch.arange(batch.segments.shape[1]) * (batch.segments >= 0).cpu()  # [B, T]
        return self._rows[starts + places]


def _reserve(path: Path, size: int) -> None:
    """Claims a file's space on the disk: written through a map, a full disk would kill the process without a word."""
    try:
        with path.open("ab") as file:
            file.truncate(size)
            if hasattr(os, "posix_fallocate"):  # macOS has none
                os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        what = f"{path} could not be written: {error.strerror or error}"
        raise OtterError(f"{what}; it takes {size / 2**30:.1f} GiB") from error

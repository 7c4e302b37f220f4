"""Stores examples on the disk, mapped into memory: of data of any size only an index is held."""

import array
import io
import itertools
import mmap
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import IO, Any, overload

import pyarrow

from otterlm.errors import OtterError, reason
from otterlm.files import temporary_file
from otterlm.identity import DataDigest, Identity
from otterlm.training.data.packing import Example

AT_ONCE = 256
"""So many examples make a batch of the file; only the last batch may be smaller."""

_INTEGERS = pyarrow.list_(pyarrow.int32())
_SCHEMA = pyarrow.schema(
    [
        ("row", pyarrow.int64()),
        ("tokens", _INTEGERS),  # the prefix, then the branches
        ("parts", _INTEGERS),  # how many tokens each of these has
        ("scores", pyarrow.list_(pyarrow.float64())),
        ("prompts", _INTEGERS),
        ("label", pyarrow.int64()),
    ]
)


class ExampleFile:
    """The file of Arrow holds examples. It is mapped into memory, or lies there.

    Args:
        source: a path of a file that `write_examples` wrote, or the open file, or what it wrote.

    Raises:
        OtterError: the file is damaged.

    Attributes:
        rows, lengths: of each example, see `Example`.
        longest: the tokens of the longest text.
    """

    def __init__(self, source: Path | IO[bytes] | bytes) -> None:
        self._memory: mmap.mmap | None = None
        self._reads = 0
        self.rows, self.lengths, self.longest = array.array("q"), array.array("i"), 0
        try:
            if not isinstance(source, bytes):
                with source.open("rb") if isinstance(source, Path) else nullcontext(source) as file:
                    self._memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self._file = pyarrow.ipc.open_file(pyarrow.py_buffer(self._memory or source))
            for number in range(self._file.num_record_batches):
                self._index(self._batch(number))
        except (OSError, ValueError, KeyError, pyarrow.ArrowException) as error:
            name = source if isinstance(source, Path) else "what was stored"
            raise OtterError(f"{name} is damaged ({reason(error)}): delete it") from error

    def _index(self, batch: Any) -> None:
        self.rows.extend(batch.column("row").to_pylist())
        for prefix, *branches in batch.column("parts").to_pylist():
            self.lengths.append(prefix + sum(branches))
            self.longest = max(self.longest, prefix + max(branches))

    def _batch(self, number: int) -> Any:
        """Returns a batch of the file.

        What was read of the map counts as this process's memory until it is given back.
        """
        self._reads += 1
        if self._memory is not None and self._reads % AT_ONCE == 0 and hasattr(mmap, "MADV_DONTNEED"):
            self._memory.madvise(mmap.MADV_DONTNEED)
        return self._file.get_batch(number)

    def read(self, number: int) -> Example:
        """Returns one example."""
        part, position = divmod(number, AT_ONCE)
        return _example(self._batch(part), position)


class StoredExamples(Sequence[Example]):
    """The examples of a file, or some of them, are read when they are asked for.

    Args:
        file: holds them.
        numbers: of the examples in the file.
    """

    def __init__(self, file: ExampleFile, numbers: Sequence[int]) -> None:
        self._file, self._numbers = file, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> "StoredExamples": ...
    def __getitem__(self, index: int | slice) -> "Example | StoredExamples":
        if isinstance(index, slice):
            return StoredExamples(self._file, self._numbers[index])
        return self._file.read(self._numbers[index])

    @cached_property
    def lengths(self) -> Sequence[int]:
        """Returns the length of each example."""
        return array.array("i", (self._file.lengths[number] for number in self._numbers))

    @property
    def longest(self) -> int:
        """Counts the tokens of the longest text of the file."""
        return self._file.longest

    @cached_property
    def identity(self) -> Identity:
        """Returns the digest of the examples, see `otterlm.identity.of_data`."""
        digest = DataDigest()
        for example in self:
            digest.add(example)
        return digest.identity

    def select(self, keep: Callable[[int], bool]) -> "StoredExamples":
        """Returns the examples whose row is to be kept."""
        numbers = (number for number in self._numbers if keep(self._file.rows[number]))
        return StoredExamples(self._file, array.array("q", numbers))

    def take(self, indices: Iterable[int]) -> "StoredExamples":
        """Returns the examples at some indices, in their order."""
        return StoredExamples(self._file, array.array("q", (self._numbers[index] for index in indices)))

    def joined(self, others: "StoredExamples") -> "StoredExamples":
        """Returns these examples and others of the same file, in the file's order."""
        assert self._file is others._file
        return StoredExamples(self._file, array.array("q", sorted([*self._numbers, *others._numbers])))


def write_examples(examples: Iterable[Example], sink: IO[bytes]) -> None:
    """Writes examples into a file, for `ExampleFile`."""
    rest = iter(examples)
    with pyarrow.ipc.new_file(sink, _SCHEMA) as writer:
        while group := list(itertools.islice(rest, AT_ONCE)):
            writer.write_batch(pyarrow.RecordBatch.from_pylist([_record(example) for example in group], _SCHEMA))


def in_memory(examples: Iterable[Example]) -> StoredExamples:
    """Stores examples in memory: a few bytes a token, where an `Example` takes some thirty."""
    buffer = io.BytesIO()
    write_examples(examples, buffer)
    file = ExampleFile(buffer.getvalue())
    return StoredExamples(file, range(len(file.rows)))


def on_disk(examples: Iterable[Example]) -> StoredExamples:
    """Stores examples in a temporary file without a name, which goes with the process.

    Raises:
        OtterError: an example cannot be made, or the file cannot be written.
    """
    with temporary_file("tokens") as sink:
        write_examples(examples, sink)
        sink.flush()
        file = ExampleFile(sink)
    return StoredExamples(file, range(len(file.rows)))


def select(examples: Sequence[Example], keep: Callable[[int], bool]) -> Sequence[Example]:
    """Returns the examples whose row is to be kept, on the disk if they are there."""
    if isinstance(examples, StoredExamples):
        return examples.select(keep)
    return [example for example in examples if keep(example.row)]


def take(examples: Sequence[Example], indices: Iterable[int]) -> Sequence[Example]:
    """Returns the examples at some indices, on the disk if they are there."""
    return examples.take(indices) if isinstance(examples, StoredExamples) else [examples[index] for index in indices]


def by_row(first: Sequence[Example], second: Sequence[Example]) -> Sequence[Example]:
    """Returns the examples of both parts of some data, in the order of their rows."""
    if isinstance(first, StoredExamples) and isinstance(second, StoredExamples):
        return first.joined(second)
    return sorted([*first, *second], key=lambda example: example.row)


def longest_of(examples: Sequence[Example]) -> int:
    """Counts the tokens of the longest text."""
    return examples.longest if isinstance(examples, StoredExamples) else max(each.longest for each in examples)


def _record(example: Example) -> dict[str, Any]:
    parts = (example.prefix, *example.branches)
    return {
        "row": example.row,
        "tokens": [token for part in parts for token in part],
        "parts": [len(part) for part in parts],
        "scores": example.scores,
        "prompts": example.prompts,
        "label": example.label,
    }


def _example(batch: Any, position: int) -> Example:
    def listed(name: str) -> tuple[Any, ...]:
        column = batch.column(name)
        start, end = column.offsets[position].as_py(), column.offsets[position + 1].as_py()
        return tuple(column.values[start:end].to_numpy().tolist())

    tokens, parts = listed("tokens"), listed("parts")
    prefix, *branches = (tokens[end - size : end] for end, size in zip(itertools.accumulate(parts), parts, strict=True))
    return Example(
        row=batch.column("row")[position].as_py(),
        prefix=prefix,
        branches=tuple(branches),
        scores=listed("scores"),
        prompts=listed("prompts"),
        label=batch.column("label")[position].as_py(),
    )

"""Stores rows of any kind on the disk while they are read, so that data may be larger than memory."""

import array
import mmap
import pickle
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar, overload

from otterlm.files import temporary_file
from otterlm.identity import DataDigest, Identity

Item = TypeVar("Item")

AT_ONCE = 16 << 20
"""After so many bytes, what was read of the map is given back: until then it counts as this process's memory."""


class StoredItems(Sequence[Item]):
    """The items are stored in a temporary file without a name, which this process alone reads and which goes with it.

    They are pickled, so they may be of any kind, such as pairs, labelled rows or texts. They can be read many times.

    Args:
        items: read once.

    Raises:
        OtterError: an item cannot be read, or the file cannot be written.

    Attributes:
        identity: a digest of the items.
    """

    def __init__(self, items: Iterable[Item]) -> None:
        self._starts, self._read = array.array("q", [0]), 0
        digest, size = DataDigest(), 0
        with temporary_file("rows") as file:
            for item in items:
                size += file.write(pickle.dumps(item, pickle.HIGHEST_PROTOCOL))
                self._starts.append(size)
                digest.add(item)
            file.flush()
            self._memory: Any = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) if size else b""
        self.identity: Identity = digest.identity

    def __len__(self) -> int:
        return len(self._starts) - 1

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> list[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | list[Item]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = range(len(self))[index]
        start, end = self._starts[number], self._starts[number + 1]
        self._read += end - start
        if self._read > AT_ONCE and hasattr(mmap, "MADV_DONTNEED"):
            self._memory.madvise(mmap.MADV_DONTNEED)
            self._read = 0
        item: Item = pickle.loads(self._memory[start:end])
        return item

    def __iter__(self) -> Iterator[Item]:
        """Reads the items, in their order."""
        return (self[number] for number in range(len(self)))

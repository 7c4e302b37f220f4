"""Stores rows on the disk while they are read, so that data may be larger than memory."""

import array
import itertools
import os
import tempfile
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

import pyarrow

from otterlm.files import temporary_writes
from otterlm.identity import DataDigest, Identity
from otterlm.training.data.conversations import Dialogue, Prompt
from otterlm.training.data.rows import PairRow, Row, ScoredRow

IN_MEMORY = 64 << 20
"""A file of rows of up to so many bytes stays in memory."""

AT_ONCE = 256
"""So many rows are written and read together."""

_TURNS = pyarrow.list_(pyarrow.struct([("role", pyarrow.string()), ("content", pyarrow.string())]))
_SCHEMA = pyarrow.schema(
    [
        ("where", pyarrow.binary()),  # a file's name need not be UTF-8
        ("prompt", _TURNS),
        ("responses", pyarrow.list_(pyarrow.string())),
        ("apart", pyarrow.bool_()),  # whether the second text has a prompt of its own
        ("other_prompt", _TURNS),
        ("score", pyarrow.float64()),
    ]
)


class StoredRows(Collection[Row]):
    """The rows are stored in a temporary file of Arrow, which goes with the process. They can be read many times.

    Args:
        rows: read once.

    Raises:
        OtterError: a row cannot be read, or the file cannot be written.

    Attributes:
        identity: a digest of the rows.
    """

    def __init__(self, rows: Iterable[Row]) -> None:
        self._file = tempfile.SpooledTemporaryFile(max_size=IN_MEMORY)  # noqa: SIM115 - it is read as long as this lives
        self._count, self._starts = 0, array.array("q", [0])
        digest, rest = DataDigest(), iter(rows)
        while group := list(itertools.islice(rest, AT_ONCE)):
            self._write(group)
            for row in group:
                digest.add(row)
        self.identity: Identity = digest.identity

    def _write(self, group: Sequence[Row]) -> None:
        batch = pyarrow.RecordBatch.from_pylist([_record(row) for row in group], _SCHEMA)
        with temporary_writes("the rows"):
            self._file.write(batch.serialize())
        self._starts.append(self._file.tell())
        self._count += len(group)

    def __len__(self) -> int:
        return self._count

    def __contains__(self, row: object) -> bool:
        return any(row == each for each in self)

    def __iter__(self) -> Iterator[Row]:
        """Reads the rows, in their order."""
        for start, end in itertools.pairwise(self._starts):
            self._file.seek(start)
            batch = pyarrow.ipc.read_record_batch(pyarrow.py_buffer(self._file.read(end - start)), _SCHEMA)
            yield from map(_row, batch.to_pylist())


def _record(row: Row) -> dict[str, Any]:
    texts = [row.chosen, row.rejected] if isinstance(row, PairRow) else [row.text]
    apart = texts[-1].prompt != texts[0].prompt
    return {
        "where": os.fsencode(row.where),
        "prompt": _turns(texts[0].prompt),
        "responses": [text.response for text in texts],
        "apart": apart,
        "other_prompt": _turns(texts[-1].prompt) if apart else None,
        "score": None if isinstance(row, PairRow) else row.score,
    }


def _turns(prompt: Prompt | None) -> list[dict[str, str]] | None:
    return None if prompt is None else [{"role": role, "content": content} for role, content in prompt]


def _row(record: dict[str, Any]) -> Row:
    prompt = _prompt(record["prompt"])
    other = _prompt(record["other_prompt"]) if record["apart"] else prompt
    texts = [Dialogue(each, response) for each, response in zip((prompt, other), record["responses"], strict=False)]
    where = os.fsdecode(record["where"])
    if record["score"] is None:
        return PairRow(texts[0], texts[1], where)
    return ScoredRow(texts[0], record["score"], where)


def _prompt(turns: list[dict[str, str]] | None) -> Prompt | None:
    return None if turns is None else tuple((turn["role"], turn["content"]) for turn in turns)

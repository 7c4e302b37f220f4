"""Says which rows of a step's logits belong to which request."""

from collections.abc import Collection, Sequence
from typing import NamedTuple


class Step(NamedTuple):
    """A step is what the engine runs at once.

    Attributes:
        requests: in the order of the batch.
        tokens: how many the model reads, those of prompts included.
        seeded: the requests, by index, that sample with a seed of their own.
    """

    requests: list[str]
    tokens: int
    seeded: Collection[int]


def rows_of(drafts: Sequence[int]) -> list[range]:
    """Returns each request's rows: one for its last token, and one more for each draft that is verified.

    The rows of a request come together, in the order of the batch. A draft is verified by the row before its own, and
    the last row gives the token after all drafts.

    Args:
        drafts: how many are verified, of each request.
    """
    rows, start = [], 0
    for count in drafts:
        rows.append(range(start, start := start + count + 1))
    return rows

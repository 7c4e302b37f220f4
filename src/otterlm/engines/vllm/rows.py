"""Says which rows of a step's logits belong to which request."""

from collections.abc import Sequence


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

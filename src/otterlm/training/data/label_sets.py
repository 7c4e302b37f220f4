"""Finds the labels that a guard of some rows has."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from otterlm.errors import OtterError
from otterlm.training.data.labelled import LabelledRow
from otterlm.training.data.labels import NUMBERED, Marks


def label_set(rows: Sequence[LabelledRow]) -> dict[str, Any]:
    """Returns the `labels`, `harmless`, `harmless_names` and `spans` of a `GuardConfig` that can learn from rows.

    Where every row has one label and there are several offences, the labels exclude each other; otherwise each offence
    is a label, independent of the others. The most frequent offence comes first.

    Raises:
        OtterError: the rows hold no offence, or nothing that is harmless.
    """
    marks = list(_marks(rows))
    harmless = Counter(each.harmless for each in marks if each.harmless is not None)
    counts = Counter(name for each in marks for name in each.offences)
    marked = _marked(rows, tuple(counts))
    counts.update(name for name in marked if name not in counts)
    offences = tuple(name for name, _ in counts.most_common())
    if not offences:
        raise OtterError("the data holds no row with an offence: say what the labels mean with --label-names")
    if all(each.offences for each in marks) and not any(row.spans is not None for row in rows):
        raise OtterError(f"every row is {' or '.join(offences)}: say which labels are harmless with --harmless")
    spans = tuple(name for name in offences if name in marked)
    if len(offences) > 1 and harmless and all(each.single for each in marks):
        labels = {"labels": (*harmless, *offences), "harmless": tuple(harmless)}
    else:
        labels = {"labels": offences, "harmless": ()}
    return labels | {"harmless_names": tuple(harmless), "spans": spans}


def _marks(rows: Sequence[LabelledRow]) -> Iterator[Marks]:
    for row in rows:
        yield from (each for each in (row.marks, row.prompt_marks) if each is not None)


def _marked(rows: Sequence[LabelledRow], offences: tuple[str, ...]) -> set[str]:
    """Returns the offences whose passages are marked.

    A passage without a name is of the only offence of its row, or of all rows.
    """
    marked = set()
    for row in rows:
        names = (offences or NUMBERED[1:]) if row.marks is None else row.marks.offences
        for span in row.spans or ():
            name = names[0] if span.label is None and len(names) == 1 else span.label
            if name is not None:
                marked.add(name)
    return marked

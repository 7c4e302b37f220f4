"""Makes what every token of a labelled text teaches: the labels of each prefix, and the passages.

The truth of a prefix is only known where passages are marked: it has a label from the first marked token on. Elsewhere
every prefix learns the label that the text has at its end, so that the guard's output is the expected label (a value).
"""

import array
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from otterlm.errors import OtterError
from otterlm.signals.guard.config import GuardConfig
from otterlm.training.data.labelled import LabelledRow, Span
from otterlm.training.data.labelled_tokens import Characters, LabelledExample
from otterlm.training.data.labels import Marks


@dataclass(frozen=True, slots=True)
class Targets:
    """Targets are of one packed text, and NaN where nothing is known.

    Attributes:
        labels: `[T, L]` float32, of every prefix.
        spans: `[T, S]` float32, whether the token is inside a passage.
    """

    labels: Tensor
    spans: Tensor


class TargetsOf(Mapping[int, Targets]):
    """The targets of every example, by its row, are made when they are asked for: examples may lie on the disk.

    Args:
        examples: those of the rows 0, 1, 2 and so on, or any, which are looked through for their rows.
        config: the guard's.

    Raises:
        OtterError: a passage has no label or one that the guard does not have; the row is named.
    """

    def __init__(self, examples: Sequence[LabelledExample], config: GuardConfig) -> None:
        self._examples, self._config = examples, config
        self._numbers: dict[int, int] | range = range(len(examples))
        rows = array.array("q")
        for each in examples:
            _targets(each, config)  # that of the worst row is refused before training
            rows.append(each.example.row)
        if any(row != number for number, row in enumerate(rows)):
            self._numbers = {row: number for number, row in enumerate(rows)}

    def __getitem__(self, row: int) -> Targets:
        return _targets(self._examples[self._numbers[row]], self._config)

    def __len__(self) -> int:
        return len(self._numbers)

    def __iter__(self) -> Iterator[int]:
        """Yields the rows."""
        return iter(self._numbers)


def targets_of(examples: Sequence[LabelledExample], config: GuardConfig) -> dict[int, Targets]:
    """Returns the targets of every example, by its row, all in memory. Errors are those of `TargetsOf`."""
    return dict(TargetsOf(examples, config).items())


def _targets(labelled: LabelledExample, config: GuardConfig) -> Targets:
    example, row = labelled.example, labelled.row
    prompt, length = len(example.prefix), len(example)
    labels = torch.full((length, len(config.labels)), torch.nan)
    spans = torch.full((length, len(config.spans)), torch.nan)
    labels[:prompt] = _marked(row.prompt_marks, config)
    labels[prompt:] = _marked(row.marks, config)
    if labelled.characters is None or row.spans is None:
        return Targets(labels, spans)
    passages = span_labels(row, config)
    for index, label in enumerate(config.spans):
        inside = tokens_inside(labelled.characters, [span for span, name in passages if name == label])
        spans[prompt:, index] = inside
        if bool(inside.any()):
            _begin(labels[prompt:], int(inside.int().argmax()), config, label)
        elif row.marks is None:
            labels[prompt:, config.labels.index(label)] = 0.0
    if config.exclusive and row.marks is None and not passages:
        labels[prompt:] = _marked(Marks((), config.harmless[0]), config)
    return Targets(labels, spans)


def _begin(labels: Tensor, first: int, config: GuardConfig, label: str) -> None:
    """Writes that a text has a label from a token on, and not before it."""
    column = config.labels.index(label)
    if not config.exclusive:
        labels[:first, column], labels[first:, column] = 0.0, 1.0
        return
    harmless = config.labels.index(config.harmless[0])
    labels[:] = 0.0
    labels[:first, harmless], labels[first:, column] = 1.0, 1.0


def _marked(marks: Marks | None, config: GuardConfig) -> Tensor:
    """Returns what is known of each label, `[L]`."""
    if marks is None:
        return torch.full((len(config.labels),), torch.nan)
    known = [marks.has(label) for label in config.labels]
    if config.exclusive and not any(known):  # harmless by a list that is empty
        known[config.labels.index(config.harmless[0])] = True
    return torch.tensor([torch.nan if each is None else float(each) for each in known])


def span_labels(row: LabelledRow, config: GuardConfig) -> list[tuple[Span, str]]:
    """Returns the passages of a row with the offences that they are.

    Raises:
        OtterError: it is not said which, or the guard has no such offence.
    """
    offences = config.offences if row.marks is None else row.marks.offences
    named = []
    for span in row.spans or ():
        label = offences[0] if span.label is None and len(offences) == 1 else span.label
        if label is None:
            raise OtterError(f"{row.where}: of which label is the span? There are {', '.join(offences)}: name it")
        if label not in config.spans:
            raise OtterError(f"{row.where}: the span is of {label!r}; spans are learned of {', '.join(config.spans)}")
        named.append((span, label))
    return named


def tokens_inside(characters: Characters, spans: Collection[Span]) -> Tensor:
    """Returns which tokens share a character with a passage, `[n]` bool."""
    return torch.tensor(
        [any(start < span.end and span.start < end for span in spans) for start, end in characters], dtype=torch.bool
    )

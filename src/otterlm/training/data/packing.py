"""Packs rows into tensors: a pair becomes ONE sequence, [shared prefix | chosen | rejected], and so do several scored
responses to one prompt. Their prompt is computed once."""

import array
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from otterlm.masks import SHARED, branch_mask

CHOSEN, REJECTED = 1, 2
"""The segments of a packed pair."""


@dataclass(frozen=True, slots=True)
class Example:
    """Holds a row as tokens: a shared prefix and one branch (a text), two (chosen, rejected) or more (scored
    responses).

    Attributes:
        row: its index in the data it came from.
        prefix, branches: the tokens.
        scores: of scored texts, one a branch; empty for pairs and for texts without a score.
        prompts: for each text, how many tokens come before its response: the prefix may end inside the responses, where
            they begin alike. Empty: as many as the prefix has.
        label: the class of a labelled text, such as which of two corpora it is of.
    """

    row: int
    prefix: tuple[int, ...]
    branches: tuple[tuple[int, ...], ...]
    scores: tuple[float, ...] = ()
    prompts: tuple[int, ...] = ()
    label: int = 0

    def __len__(self) -> int:
        return len(self.prefix) + sum(map(len, self.branches))

    @property
    def is_pair(self) -> bool:
        """Says whether its two texts are a chosen and a rejected one."""
        return len(self.branches) == 2 and not self.scores

    @property
    def longest(self) -> int:
        """Counts the tokens of its longest text."""
        return len(self.prefix) + max(map(len, self.branches))

    @property
    def starts(self) -> tuple[int, ...]:
        """Returns where the response of each text, prefix + branch, begins."""
        return self.prompts or (len(self.prefix),) * len(self.branches)

    @property
    def responses(self) -> tuple[tuple[int, ...], ...]:
        """Returns the whole response of each text."""
        return tuple((self.prefix + branch)[start:] for branch, start in zip(self.branches, self.starts, strict=True))


@dataclass(slots=True)
class Batch:
    """Holds right-padded packed sequences. Tensors are `[B, T]` where nothing else is said.

    Attributes:
        input_ids: int64.
        position_ids: int64; every branch continues where the shared prefix ends.
        segments: int64, see `otterlm.masks.branch_mask`.
        parents: int64, the index of the token before each token in its own text (a text's first token is its own
            parent).
        scores: `[B, K]` float32, the scores of K branches, NaN where an example has fewer.
        labels: `[B]` int64, the class of a labelled text.
        rows: `[B]` int64, the examples' indices in the data.
        pairs: whether it holds pairs; else each branch is a text of its own.
    """

    input_ids: Tensor
    position_ids: Tensor
    segments: Tensor
    parents: Tensor
    scores: Tensor
    labels: Tensor
    rows: Tensor
    pairs: bool

    def to(self, device: torch.device | str) -> "Batch":
        """Returns the same batch on `device`."""
        parts: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        parts = {name: part.to(device) for name, part in parts.items() if isinstance(part, Tensor)}
        return replace(self, **parts)

    def inputs(self, dtype: torch.dtype) -> dict[str, Any]:
        """Returns what a model of this dtype is called with, so that branches do not see each other."""
        return {
            "input_ids": self.input_ids,
            "position_ids": self.position_ids,
            "attention_mask": branch_mask(self.segments, dtype),
            "use_cache": False,
        }


def collate(examples: Sequence[Example], pad_token_id: int = 0) -> Batch:
    """Packs and right-pads examples of one kind into one `Batch`."""
    longest = max(map(len, examples))
    shape = (len(examples), longest)
    batch = Batch(
        input_ids=torch.full(shape, pad_token_id),
        position_ids=torch.zeros(shape, dtype=torch.long),
        segments=torch.full(shape, -1),
        parents=torch.zeros(shape, dtype=torch.long),
        scores=_scores(examples),
        labels=torch.tensor([example.label for example in examples]),
        rows=torch.tensor([example.row for example in examples]),
        pairs=all(example.is_pair for example in examples),
    )
    for row, example in enumerate(examples):
        start, prefix = 0, len(example.prefix)
        for segment, tokens in enumerate((example.prefix, *example.branches), start=SHARED):
            part = slice(start, start + len(tokens))
            first = 0 if segment == SHARED else prefix
            batch.input_ids[row, part] = torch.tensor(tokens, dtype=torch.long)
            batch.position_ids[row, part] = torch.arange(first, first + len(tokens))
            batch.segments[row, part] = segment
            batch.parents[row, part] = torch.arange(start - 1, start + len(tokens) - 1)
            if tokens:
                batch.parents[row, start] = first - 1 if first else start
            start += len(tokens)
    return batch


def _scores(examples: Sequence[Example]) -> Tensor:
    scores = torch.full((len(examples), max(len(example.branches) for example in examples)), torch.nan)
    for row, example in enumerate(examples):
        scores[row, : len(example.scores)] = torch.tensor(example.scores)
    return scores


def lengths_of(examples: Sequence[Example]) -> Sequence[int]:
    """Returns the length of each example. Examples on the disk know them, as `lengths`."""
    known: Sequence[int] | None = getattr(examples, "lengths", None)
    return [len(example) for example in examples] if known is None else known


def bucket_count(examples: Sequence[Example], batch_size: int) -> int:
    """Returns how many batches `length_buckets` makes."""
    return -(-len(examples) // batch_size)


def length_buckets(
    examples: Sequence[Example], batch_size: int, seed: int | None = None, pool: int = 16
) -> Iterator[list[Example]]:
    """Makes batches of examples of like length, so that little is spent on padding.

    Args:
        examples: what to batch.
        batch_size: examples a batch; the last may be smaller.
        seed: shuffles examples and batches, the same way for the same seed; None keeps the given order's buckets.
        pool: lengths are sorted within pools of this many batches, so that shuffled batches still differ by epoch.
    """
    # Arrays, as there may be millions of examples: a list of numbers takes four times as much.
    order, lengths = array.array("q", range(len(examples))), lengths_of(examples)
    if seed is None:
        order = array.array("q", sorted(order, key=lengths.__getitem__))
        batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    else:
        shuffle = random.Random(seed)
        shuffle.shuffle(order)
        span = batch_size * pool
        batches = []
        for begin in range(0, len(order), span):
            group = array.array("q", sorted(order[begin : begin + span], key=lengths.__getitem__))
            batches += [group[start : start + batch_size] for start in range(0, len(group), batch_size)]
        shuffle.shuffle(batches)
    for batch in batches:
        yield [examples[index] for index in batch]


def followed_tokens(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the response tokens that follow another token: their rows, their positions and their parents' positions,
    `[n]` each. (The first token of a text without a prompt is predicted by nothing.)"""
    row, position = (batch.segments >= CHOSEN).nonzero(as_tuple=True)
    parent = batch.parents[row, position]
    follows = parent != position
    return row[follows], position[follows], parent[follows]

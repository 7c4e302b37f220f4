"""Shows packed batches to bases that cannot keep branches apart by a mask, such as those of linear attention.

Each branch is read apart, behind its own copy of the prefix, and what is read is packed again, so that the stream sees
what it always sees.
"""

from dataclasses import replace

import torch
from torch import Tensor

from otterlm.cache import Past
from otterlm.masks import SHARED, branch_mask
from otterlm.taps import EdgeTaps, Text, Visitor
from otterlm.training.data.packing import Batch


def text_of(batch: Batch, mask: Tensor) -> Text:
    """Returns what a decoder knows of a packed batch."""
    return Text(mask, batch.position_ids, Past(0, False))


class Unpacked:
    """A packed batch is taken apart into its texts, a row each.

    Attributes:
        input_ids, attention_mask: `[N, T]`, padded on the right.
        batch: the packed one.
    """

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        segments = batch.segments
        branches = torch.arange(1, max(2, int(segments.max()) + 1), device=segments.device)
        whole = (segments == SHARED)[:, None] | (segments[:, None] == branches[:, None])  # [B, branches, T]
        order = (~whole).long().argsort(dim=-1, stable=True)  # a text's tokens first, in their order
        length = int(whole.sum(dim=-1).max())
        ids = batch.input_ids[:, None].expand_as(order).gather(-1, order)[..., :length].flatten(0, 1)
        self.attention_mask = whole.gather(-1, order)[..., :length].long().flatten(0, 1)
        self.input_ids = ids * self.attention_mask
        # Where each packed token stands: in the row of its branch (the prefix in the first one's), at its position.
        first = torch.arange(len(segments), device=segments.device)[:, None] * len(branches)
        self._rows = first + (segments - 1).clamp_min(0)
        self._columns = batch.position_ids

    def pack(self, state: Tensor) -> Tensor:
        """Maps `[N, T, d]` of the rows to `[B, T, d]` of the packed batch."""
        return state[self._rows, self._columns]


class Packing(Visitor):
    """The visitor reads texts in rows, and shows another visitor the batch that they were packed in.

    Args:
        visitor: sees the packed batch.
        apart: its texts.
        dtype: of the base.
    """

    def __init__(self, visitor: Visitor, apart: Unpacked, dtype: torch.dtype) -> None:
        self._visitor = visitor
        self._apart = apart
        self._text = text_of(apart.batch, branch_mask(apart.batch.segments, dtype))

    def tokens(self, input_ids: Tensor) -> None:
        """Shows the packed tokens. The other methods do so with states."""
        self._visitor.tokens(self._apart.batch.input_ids)

    def layer(self, index: int, taps: EdgeTaps) -> None:
        packed, again = self._packed(taps), taps.again
        if again is not None:
            packed.again = lambda: self._packed(again())
        self._visitor.layer(index, packed)

    def _packed(self, taps: EdgeTaps) -> EdgeTaps:
        assert taps.added is not None
        hidden, added = self._apart.pack(taps.hidden), self._apart.pack(taps.added)
        return replace(taps, hidden=hidden, added=added, text=self._text, cache=None)

    def final(self, hidden: Tensor, normed: Tensor) -> None:
        self._visitor.final(self._apart.pack(hidden), self._apart.pack(normed))

"""Runs a base without its inserted stream, and the stream afterwards, over several tokens at once.

The base never reads the stream, so it need not wait for it. What the stream reads of the base is kept until then.
"""

from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from otterlm.masks import tree_mask
from otterlm.model import OtterModel
from otterlm.taps import EdgeTaps, LayerTaps, Text, Visitor


class DeferredStream(Visitor):
    """The stream of one adapter is shown the base's latest passes, of one token each, when it is needed.

    Args:
        model: with the adapter.
        adapter_name: of the stream.
    """

    def __init__(self, model: OtterModel, adapter_name: str) -> None:
        self._model = model
        self._name = adapter_name
        self._clear()

    def _clear(self) -> None:
        self._tokens: list[Tensor] = []
        self._taps: dict[int, list[EdgeTaps]] = {}
        self._last: list[tuple[Tensor, Tensor]] = []

    def __len__(self) -> int:
        """Returns how many tokens the stream has not read."""
        return len(self._last)

    def run(self, **inputs: Any) -> Any:
        """Runs a pass of the base alone, of one token of each row. The arguments are the base's."""
        with self._model.visit(self):
            return self._model.base_model(**inputs)

    def tokens(self, input_ids: Tensor) -> None:
        """Keeps what a pass shows, see `Visitor` for this and the next two methods."""
        self._tokens.append(input_ids)

    def layer(self, index: int, taps: EdgeTaps) -> None:
        self._taps.setdefault(index, []).append(taps)

    def final(self, hidden: Tensor, normed: Tensor) -> None:
        self._last.append((hidden, normed))

    def catch_up(self, seen: Tensor) -> Tensor:
        """Runs the stream over the tokens that it has not read, and fills its part of the KV cache.

        Args:
            seen: `[B, T]`, which tokens of the text so far may be attended.

        Returns:
            The state of the last token, `[B, d + d']`.
        """
        count = len(self)
        stream = self._model.stream_passes([self._name])[self._name]
        ancestors = torch.ones(count, count, dtype=torch.bool).tril()
        mask = tree_mask(seen[:, :-count].bool(), ancestors, self._model.base_model.dtype)
        if self._tokens:
            stream.tokens(torch.cat(self._tokens, dim=1))
        tables: dict[int, Any] = {}  # blocks that share a rotation show one table
        for index, parts in self._taps.items():
            stream.layer(index, _join(parts, mask, tables))
        hidden, normed = (torch.cat(parts, dim=1) for parts in zip(*self._last, strict=True))
        stream.final(hidden, normed)
        self._clear()
        assert stream.state is not None
        return stream.state[:, -1]


def _join(parts: list[EdgeTaps], mask: Tensor, tables: dict[int, Any]) -> EdgeTaps:
    """Joins the taps of one block in passes that follow each other, `[B, 1, ...]` each, to those of one pass."""
    first = parts[0]
    joined: dict[str, Any] = {
        field.name: torch.cat([getattr(part, field.name) for part in parts], dim=1)
        for field in fields(first)
        if isinstance(getattr(first, field.name), Tensor) and field.name != "mask"
    }
    if first.text is not None:
        texts = [part.text for part in parts if part.text is not None]
        positions = [text.positions for text in texts if text.positions is not None]
        joined["text"] = Text(mask, torch.cat(positions, dim=-1), first.text.past)
    if isinstance(first, LayerTaps):
        joined["mask"] = mask
        if first.rotary is not None:
            if id(first.rotary) not in tables:
                pairs = [part.rotary for part in parts if isinstance(part, LayerTaps) and part.rotary is not None]
                tables[id(first.rotary)] = tuple(torch.cat(turns, dim=-2) for turns in zip(*pairs, strict=True))
            joined["rotary"] = tables[id(first.rotary)]
    return replace(first, **joined)

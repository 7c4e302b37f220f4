"""Computes blocks of the base again in the backward pass, so that what they read is not in memory meanwhile.

This is gradient checkpointing (arXiv 1604.06174) of an inserted stream. Of each widened block only the state that
enters it stays, `[B, T, d]`. Without it, copies of its heads, units and normed states stay, some six times as much. It
costs one more pass of the widened blocks a step. The gradients are the same to the bit.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from otterlm.families.parts import blocks_of
from otterlm.model import OtterModel
from otterlm.taps import EdgeTaps, Visitor


@contextmanager
def recomputing(model: OtterModel, visitor: Visitor) -> Iterator[None]:
    """Shows the base's passes inside the block to `visitor`, with taps that can be computed again."""
    shown = _Repeatable(model, visitor)
    blocks = blocks_of(model.base_model, model.family)
    handles = [
        blocks[index].register_forward_pre_hook(partial(shown.on_call, index), with_kwargs=True)
        for index in model.watched_layers
    ]
    try:
        with model.visit(shown):
            yield
    finally:
        for handle in handles:
            handle.remove()


class _Repeatable(Visitor):
    """Tells taps how their block was called."""

    def __init__(self, model: OtterModel, visitor: Visitor) -> None:
        self._model, self._visitor = model, visitor
        self._calls: dict[int, partial[EdgeTaps]] = {}

    def on_call(self, index: int, block: nn.Module, inputs: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._calls[index] = partial(_taps_of, self._model, block, inputs, kwargs)

    def tokens(self, input_ids: Tensor) -> None:
        self._visitor.tokens(input_ids)

    def layer(self, index: int, taps: EdgeTaps) -> None:
        taps.again = self._calls.pop(index)
        self._visitor.layer(index, taps)

    def final(self, hidden: Tensor, normed: Tensor) -> None:
        self._visitor.final(hidden, normed)


class _Latest(Visitor):
    """Remembers the taps of a block."""

    taps: EdgeTaps

    def layer(self, index: int, taps: EdgeTaps) -> None:
        self.taps = taps


@torch.no_grad()
def _taps_of(model: OtterModel, block: nn.Module, inputs: tuple[Any, ...], kwargs: dict[str, Any]) -> EdgeTaps:
    """Calls a block and returns its taps."""
    latest = _Latest()
    with model.visit(latest):
        block(*inputs, **kwargs)
    return latest.taps

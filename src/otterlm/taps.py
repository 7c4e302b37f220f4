"""Reads a base's intermediates during its forward pass, by hooks on unmodified modules.

The hooks do nothing until a visitor is set for the running thread, so a base that carries them computes what it did,
and two threads do not see each other's passes. A copy of a base, or one that was pickled, carries hooks that never do
anything.
"""

import inspect
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

from otterlm.cache import Past
from otterlm.causal import decoder_of
from otterlm.errors import OtterError
from otterlm.families import Family, Outline
from otterlm.families.points import EDGE, HookPoint, by_part, hook_points, text_points
from otterlm.hooks import Hook, remove_copied_hooks


@dataclass(frozen=True, slots=True)
class Text:
    """The text is described by a decoder's arguments.

    Attributes:
        mask: the attention mask, of any kind.
        positions: the position ids, `[B, T]` or `[axes, B, T]`; None: they continue from the past.
        past: how much of the text the cache holds.
    """

    mask: Any
    positions: Tensor | None
    past: Past


@dataclass(slots=True, kw_only=True)
class EdgeTaps:
    """These taps can be read of any block of the frozen base.

    Attributes:
        hidden: the state that enters the block, `[B, T, d]`.
        added: what the block adds to it, `[B, T, d]`; None where only the inside is read.
        text: the text; None where only the inside is read.
        cache: the KV cache in use, which already holds this block's keys and values.
        again: computes these taps again, so that a training step need not hold them; None: they stay in memory.
    """

    hidden: Tensor
    added: Tensor | None = None
    text: Text | None = None
    cache: Cache | None = None
    again: "Callable[[], EdgeTaps] | None" = None


@dataclass(slots=True, kw_only=True)
class LayerTaps(EdgeTaps):
    """These taps are the tensors that one block computed on its way.

    Attributes:
        attention_input: what attention reads of the state, mostly that state after a norm, `[B, T, d]`.
        heads: the outputs of the attention heads, `[B, T, H * head_dim]`.
        middle: the state that the FFN's norm sees, `[B, T, d]`; in a parallel block `hidden`.
        ffn_input: what the FFN reads, `[B, T, d]`.
        units: the outputs of the FFN units, `[B, T, f]`; None for experts.
        rotary: cos and sin of the positions, `[B, T, rotated channels]` each; None without RoPE.
        mask: as the base's attention received it; None where the kernel makes its own causal mask.
        attended: what attention puts out, before a norm that follows it, `[B, T, d]`; None where there is no such norm.
        produced: what the FFN puts out, `[B, T, d]`; None where neither a norm follows it nor experts made it.
    """

    attention_input: Tensor
    heads: Tensor
    middle: Tensor
    ffn_input: Tensor
    units: Tensor | None
    rotary: tuple[Tensor, Tensor] | None
    mask: Any = None
    attended: Tensor | None = None
    produced: Tensor | None = None


class Visitor:
    """A visitor is shown a pass while it runs: the tokens, the blocks, the end. Subclasses read what they need."""

    def tokens(self, input_ids: Tensor) -> None:
        """Reads the tokens that are embedded, `[B, T]`. It is not called where the base receives embeddings."""

    def layer(self, index: int, taps: EdgeTaps) -> None:
        """Reads one watched block; the taps are `LayerTaps` where its inside is read."""

    def final(self, hidden: Tensor, normed: Tensor) -> None:
        """Reads the state before and after the final norm, `[B, T, d]` each."""

    def output(self, output: Any) -> None:
        """Reads what the base's forward is about to return. It is not called where only its decoder runs."""


class Taps:
    """Reads a base by hooks on its modules.

    Args:
        base: the model to read.
        family: where its parts are.
        layers: the blocks to watch.
        inside: whether their inside is read, which the family must know.
        edge: whether what they add is read.

    The hooks are removed when `remove` is called or this object is collected.
    """

    def __init__(
        self, base: PreTrainedModel, family: Outline, layers: tuple[int, ...], inside: bool, edge: bool
    ) -> None:
        remove_copied_hooks(base)
        self._slot = slot = _Slot(bool(layers))
        decoder = decoder_of(base)
        handles = [
            base.register_forward_hook(Hook(slot.on_output)),
            decoder.get_submodule(family.embedding).register_forward_pre_hook(Hook(slot.on_tokens)),
        ]
        if family.final_norm is None:
            handles.append(decoder.register_forward_hook(Hook(slot.on_decoder_output)))
        else:
            handles.append(decoder.get_submodule(family.final_norm).register_forward_hook(Hook(slot.on_final_norm)))
        if edge:
            points = text_points(tuple(inspect.signature(decoder.forward).parameters))
            handles.append(decoder.register_forward_pre_hook(Hook(slot.on_text, points), with_kwargs=True))
        for index in layers:
            hooks = _LayerHooks(slot, index, family, family if inside and isinstance(family, Family) else None, edge)
            handles += hooks.attach(decoder.get_submodule(family.layers)[index])
        self.remove = weakref.finalize(self, _remove_all, handles)

    @contextmanager
    def visit(self, visitor: Visitor) -> Iterator[None]:
        """Shows the passes of this thread inside the block to `visitor`."""
        state = self._slot.state
        outer, state.visitor, state.waits = state.visitor, visitor, state.watches
        try:
            yield
        finally:
            state.visitor = outer


def changed(what: str) -> str:
    """Says that a base is not what was hooked any more."""
    return f"{what} changed after the base was wrapped: call watch() of the OtterModel, or wrap the base again"


def _remove_all(handles: list[Any]) -> None:
    for handle in handles:
        handle.remove()


class _State:
    """The state holds the visitor that one thread shows its passes to, and what the current block has shown.

    Attributes:
        visitor: is shown the passes; None: no visitor.
        seen: what the current block has shown so far.
        text: what the decoder reads in this pass.
        watches: whether there are blocks to show.
        waits: whether the pass has shown none yet: some families norm the embeddings with their final norm, too.
    """

    def __init__(self, watches: bool) -> None:
        self.visitor: Visitor | None = None
        self.seen: dict[str, Any] = {}
        self.text: Text | None = None
        self.watches = watches
        self.waits = watches


class _Slot(threading.local):
    """The slot holds the state of each thread, as a separate object: a compiler does not write to a `local`."""

    def __init__(self, watches: bool) -> None:
        self.state = _State(watches)

    def on_tokens(self, _: nn.Module, inputs: tuple[Tensor]) -> None:
        state = self.state
        if state.visitor is not None:
            state.waits = state.watches
            state.visitor.tokens(inputs[0])

    def on_text(
        self, points: tuple[HookPoint, ...], _: nn.Module, inputs: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        state = self.state
        if state.visitor is not None:
            arguments = {point.tap: point.of_inputs(inputs, kwargs) for point in points}
            state.text = Text(**arguments, past=Past.of(_cache_among(inputs, kwargs)))

    def on_decoder_output(self, _: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        self.on_final_norm(_, (output[0],), output[0])

    def on_final_norm(self, _: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        state = self.state
        if state.visitor is not None and not state.waits:
            state.waits = state.watches
            state.visitor.final(inputs[0], output)

    def on_output(self, _: nn.Module, __: tuple[()], output: Any) -> None:
        if (visitor := self.state.visitor) is not None:
            visitor.output(output)


def _cache_among(inputs: tuple[Any, ...], kwargs: dict[str, Any]) -> Cache | None:
    """Returns the cache among a part's inputs, whatever its name."""
    return next((value for value in (*inputs, *kwargs.values()) if isinstance(value, Cache)), None)


class _LayerHooks:
    """Makes the hooks of one block.

    Args:
        slot: the state of each thread.
        index: of the block.
        outline: the base's.
        inside: the base's family, where the block's inside is read.
        edge: whether what the block adds is read.
    """

    def __init__(self, slot: _Slot, index: int, outline: Outline, inside: Family | None, edge: bool) -> None:
        self._slot = slot
        self._index = index
        self._streams = outline.streams
        self._inside = inside
        self._edge = edge
        self._points = (() if inside is None else hook_points(inside)) + (EDGE if edge else ())
        self._taps = tuple(point.tap for point in self._points)

    def attach(self, block: nn.Module) -> list[Any]:
        """Hooks the parts of a block; returns the handles."""
        handles = []
        for (path, side), those in by_part(self._points).items():
            part = block.get_submodule(path)
            if side == "input":
                handles.append(part.register_forward_pre_hook(Hook(self.on_inputs, those), with_kwargs=True))
            else:
                handles.append(part.register_forward_hook(Hook(self.on_output, those)))
        return [*handles, block.register_forward_hook(Hook(self.on_leave))]

    def on_inputs(
        self, points: tuple[HookPoint, ...], _: nn.Module, inputs: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """Stores what is read of a part's inputs."""
        state = self._slot.state
        if state.visitor is not None:
            for point in points:
                state.seen[point.tap] = point.of_inputs(inputs, kwargs)
            if self._inside is None:  # else a hook point reads the cache
                state.seen["cache"] = _cache_among(inputs, kwargs)

    def on_output(self, points: tuple[HookPoint, ...], _: nn.Module, __: tuple[Any, ...], output: Any) -> None:
        """Stores what is read of a part's output."""
        state = self._slot.state
        if state.visitor is not None:
            for point in points:
                state.seen[point.tap] = point.of_output(output)

    def on_leave(self, _: nn.Module, __: tuple[Any, ...], ___: Any) -> None:
        state = self._slot.state
        visitor = state.visitor
        if visitor is None:
            return
        seen, state.seen, state.waits = state.seen, {}, False
        if not all(tap in seen for tap in self._taps):
            raise OtterError(changed(f"parts of the base's block {self._index}"))
        if self._edge:
            hidden, left = self._one(seen["hidden"]), self._one(seen.pop("left"))
            seen |= {"hidden": hidden, "added": left - hidden, "text": state.text}
        if self._inside is None:
            visitor.layer(self._index, EdgeTaps(**seen))
            return
        hidden = seen["hidden"]
        # Some families flatten batch and time on the way.
        for name in ("ffn_input", "middle", "units", "produced"):
            if name in seen:
                seen[name] = seen[name].view(*hidden.shape[:-1], -1)
        seen.setdefault("middle", hidden if self._inside.parallel else seen["ffn_input"])
        seen.setdefault("units", None)
        visitor.layer(self._index, LayerTaps(**seen))

    def _one(self, state: Tensor) -> Tensor:
        """Returns one state, `[B, T, d]`, where the base has several side by side."""
        return state if self._streams is None else state.mean(dim=self._streams)

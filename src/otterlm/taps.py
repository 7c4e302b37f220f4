"""Reads a base's intermediates during its forward pass, by hooks on unmodified modules.

The hooks do nothing until a visitor is set for the running thread, so a base that carries them computes what it did,
and two threads do not see each other's passes. A copy of a base, or one that was pickled, carries hooks that never do
anything.
"""

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

from otterlm.families import Family
from otterlm.families.points import HookPoint, by_part, hook_points


@dataclass(slots=True)
class LayerTaps:
    """The taps are the tensors that one block of the frozen base computed on its way.

    Attributes:
        hidden: the state that enters the block, `[B, T, d]`.
        attention_input: what attention reads of it, mostly that state after a norm, `[B, T, d]`.
        heads: the outputs of the attention heads, `[B, T, H * head_dim]`.
        middle: the state that the FFN's norm sees, `[B, T, d]`; in a parallel block `hidden`.
        ffn_input: what the FFN reads, `[B, T, d]`.
        units: the outputs of the FFN units, `[B, T, f]`; None for experts.
        rotary: cos and sin of the positions, `[B, T, rotated channels]` each; None without RoPE.
        mask: as the base's attention received it; None where the kernel makes its own causal mask.
        cache: the KV cache in use, which already holds this block's keys and values.
        attended: what attention puts out, before a norm that follows it, `[B, T, d]`; None where there is no such norm.
        produced: what the FFN puts out, `[B, T, d]`; None where neither a norm follows it nor experts made it.
    """

    hidden: Tensor
    attention_input: Tensor
    heads: Tensor
    middle: Tensor
    ffn_input: Tensor
    units: Tensor | None
    rotary: tuple[Tensor, Tensor] | None
    mask: Any = None
    cache: Cache | None = None
    attended: Tensor | None = None
    produced: Tensor | None = None


class Visitor:
    """A visitor is shown a pass while it runs: the tokens, the blocks, the end. Subclasses read what they need."""

    def tokens(self, input_ids: Tensor) -> None:
        """Reads the tokens that are embedded, `[B, T]`. It is not called where the base receives embeddings."""

    def layer(self, index: int, taps: LayerTaps) -> None:
        """Reads one watched block."""

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

    The hooks are removed when `remove` is called or this object is collected.
    """

    def __init__(self, base: PreTrainedModel, family: Family, layers: tuple[int, ...]) -> None:
        remove_copied_hooks(base)
        self._slot = slot = _Slot(bool(layers))
        decoder = base.get_decoder()
        handles = [
            base.register_forward_hook(_Hook(slot.on_output)),
            decoder.get_submodule(family.embedding).register_forward_pre_hook(_Hook(slot.on_tokens)),
            decoder.get_submodule(family.final_norm).register_forward_hook(_Hook(slot.on_final_norm)),
        ]
        for index in layers:
            handles += _LayerHooks(slot, index, family).attach(decoder.get_submodule(family.layers)[index])
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


def _remove_all(handles: list[Any]) -> None:
    for handle in handles:
        handle.remove()


class _Hook(partial[None]):
    """A hook acts only on the base it was made for.

    A copied or pickled one does nothing: it becomes a method of the standard library that takes any arguments and gives
    None, so that a pickled base can be read without Otter.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (nullcontext(), "__exit__")


def remove_copied_hooks(base: nn.Module) -> None:
    """Removes the hooks that do nothing from a copied base."""
    for module in base.modules():
        for hooks, with_kwargs in (
            (module._forward_hooks, module._forward_hooks_with_kwargs),
            (module._forward_pre_hooks, module._forward_pre_hooks_with_kwargs),
        ):
            for key in [key for key, hook in hooks.items() if isinstance(getattr(hook, "__self__", None), nullcontext)]:
                del hooks[key]
                with_kwargs.pop(key, None)


class _State:
    """The state holds the visitor that one thread shows its passes to, and what the current block has shown.

    Attributes:
        visitor: is shown the passes; None: no visitor.
        seen: what the current block has shown so far.
        watches: whether there are blocks to show.
        waits: whether the pass has shown none yet: some families norm the embeddings with their final norm, too.
    """

    def __init__(self, watches: bool) -> None:
        self.visitor: Visitor | None = None
        self.seen: dict[str, Any] = {}
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

    def on_final_norm(self, _: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        state = self.state
        if state.visitor is not None and not state.waits:
            state.waits = state.watches
            state.visitor.final(inputs[0], output)

    def on_output(self, _: nn.Module, __: tuple[()], output: Any) -> None:
        if (visitor := self.state.visitor) is not None:
            visitor.output(output)


class _LayerHooks:
    """Makes the hooks of one block."""

    def __init__(self, slot: _Slot, index: int, family: Family) -> None:
        self._slot = slot
        self._index = index
        self._family = family

    def attach(self, block: nn.Module) -> list[Any]:
        """Hooks the parts of a block; returns the handles."""
        handles = []
        for (path, side), points in by_part(hook_points(self._family)).items():
            part = block.get_submodule(path)
            if side == "input":
                handles.append(part.register_forward_pre_hook(_Hook(self.on_inputs, points), with_kwargs=True))
            else:
                handles.append(part.register_forward_hook(_Hook(self.on_output, points)))
        return [*handles, block.register_forward_hook(_Hook(self.on_leave))]

    def on_inputs(
        self, points: tuple[HookPoint, ...], _: nn.Module, inputs: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """Stores what is read of a part's inputs."""
        state = self._slot.state
        if state.visitor is not None:
            for point in points:
                state.seen[point.tap] = point.of_inputs(inputs, kwargs)

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
        hidden = seen["hidden"]
        # Some families flatten batch and time on the way.
        for name in ("ffn_input", "middle", "units", "produced"):
            if name in seen:
                seen[name] = seen[name].view(*hidden.shape[:-1], -1)
        seen.setdefault("middle", hidden if self._family.parallel else seen["ffn_input"])
        seen.setdefault("units", None)
        visitor.layer(self._index, LayerTaps(**seen))

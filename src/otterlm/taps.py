"""Reads a base's intermediates during its own forward pass, by hooks on unmodified modules. Knows no maths of ours.

The hooks are inert until a visitor is set for the running thread, and hold nothing but that slot, so a base that
carries them is the base, and two threads do not see each other's passes.
"""

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

from otterlm.families import Family


@dataclass(slots=True)
class LayerTaps:
    """What one block computed on its way, all from the frozen base.

    Attributes:
        hidden: the state that enters the block, `[B, T, d]`.
        attention_input: that state after the norm, `[B, T, d]`.
        heads: the outputs of the attention heads, `[B, T, H * head_dim]`.
        middle: the state between attention and FFN, `[B, T, d]`.
        ffn_input: that state after the norm, `[B, T, d]`.
        units: the outputs of the FFN units, `[B, T, f]`.
        rotary: cos and sin of the positions, `[B, T, head_dim]` each.
        mask: as the base's attention got it; None where the kernel makes its own causal mask.
        cache: the KV cache in use, with this block's own keys and values already in it.
    """

    hidden: Tensor
    attention_input: Tensor
    heads: Tensor
    middle: Tensor
    ffn_input: Tensor
    units: Tensor
    rotary: tuple[Tensor, Tensor]
    mask: Any = None
    cache: Cache | None = None


class Visitor:
    """Is shown a pass while it runs, in order: the tokens, the blocks, the end. Subclasses look at what they need."""

    def tokens(self, input_ids: Tensor) -> None:
        """The tokens that are embedded, `[B, T]`; not called where the base is given embeddings."""

    def layer(self, index: int, taps: LayerTaps) -> None:
        """One watched block."""

    def final(self, hidden: Tensor, normed: Tensor) -> None:
        """The state before and after the final norm, `[B, T, d]` each."""

    def output(self, output: Any) -> None:
        """What the base's forward is about to return; not called where only its decoder runs."""


class Taps:
    """Hooks on a base.

    Args:
        base: the model to read.
        family: where its parts are.
        layers: the blocks to watch.

    The hooks go when `remove` is called or this object is collected.
    """

    def __init__(self, base: PreTrainedModel, family: Family, layers: tuple[int, ...]) -> None:
        self._slot = _Slot()
        decoder = base.get_decoder()
        handles = [
            base.register_forward_hook(self._slot.on_output),
            decoder.get_submodule(family.embedding).register_forward_pre_hook(self._slot.on_tokens),
            decoder.get_submodule(family.final_norm).register_forward_hook(self._slot.on_final_norm),
        ]
        for index in layers:
            block = decoder.get_submodule(family.layers)[index]
            layer = _LayerHooks(self._slot, index)
            part = block.get_submodule
            handles += [
                part(family.attention_norm).register_forward_hook(layer.on_attention_norm),
                part(family.attention).register_forward_pre_hook(layer.on_attention, with_kwargs=True),
                part(family.attention_output).register_forward_pre_hook(layer.on_attention_output),
                part(family.ffn_norm).register_forward_hook(layer.on_ffn_norm),
                part(family.down).register_forward_pre_hook(layer.on_down),
            ]
        self.remove = weakref.finalize(self, _remove_all, handles)

    @contextmanager
    def visit(self, visitor: Visitor) -> Iterator[None]:
        """Shows the passes of this thread inside the block to `visitor`."""
        outer, self._slot.visitor = self._slot.visitor, visitor
        try:
            yield
        finally:
            self._slot.visitor = outer


def _remove_all(handles: list[Any]) -> None:
    for handle in handles:
        handle.remove()


class _Slot(threading.local):
    """The visitor of each thread, and what the current block has shown so far."""

    def __init__(self) -> None:
        self.visitor: Visitor | None = None
        self.seen: dict[str, Any] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Slot":
        """A copy of the base carries hooks that nobody listens to."""
        return _Slot()

    def on_tokens(self, _: nn.Module, inputs: tuple[Tensor]) -> None:
        if self.visitor is not None:
            self.visitor.tokens(inputs[0])

    def on_final_norm(self, _: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        if self.visitor is not None:
            self.visitor.final(inputs[0], output)

    def on_output(self, _: nn.Module, __: tuple[()], output: Any) -> None:
        if self.visitor is not None:
            self.visitor.output(output)


class _LayerHooks:
    """The hooks of one block, in the order in which its forward pass calls them."""

    def __init__(self, slot: _Slot, index: int) -> None:
        self._slot = slot
        self._index = index

    def on_attention_norm(self, _: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        if self._slot.visitor is not None:
            self._slot.seen = {"hidden": inputs[0], "attention_input": output}

    def on_attention(self, _: nn.Module, __: tuple[()], kwargs: dict[str, Any]) -> None:
        if self._slot.visitor is not None:
            self._slot.seen |= {
                "rotary": kwargs["position_embeddings"],
                "mask": kwargs["attention_mask"],
                "cache": kwargs.get("past_key_values"),
            }

    def on_attention_output(self, _: nn.Module, inputs: tuple[Tensor]) -> None:
        if self._slot.visitor is not None:
            self._slot.seen["heads"] = inputs[0]

    def on_ffn_norm(self, _: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        if self._slot.visitor is not None:
            self._slot.seen |= {"middle": inputs[0], "ffn_input": output}

    def on_down(self, _: nn.Module, inputs: tuple[Tensor]) -> None:
        visitor = self._slot.visitor
        if visitor is not None:
            seen, self._slot.seen = self._slot.seen, {}
            visitor.layer(self._index, LayerTaps(units=inputs[0], **seen))

"""Moves h' through a block with vLLM's kernels and paged KV cache.

The maths is that of `otterlm.stream.InsertedLayer`, with few operators: at one token a call costs more than what it
computes. Tensors are flat, `[T, channels]`, with all requests' tokens in a row. Of h a norm needs one number a token,
its spread, and the norms' weights are part of the projections that follow them.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from otterlm.engines.vllm.kernels import operators
from otterlm.engines.vllm.kernels.block import PackedBlock
from otterlm.engines.vllm.upstream.names import Attention, VllmConfig
from otterlm.stream import InsertedLayer, InsertedStream

NONE = 0
"""vLLM's compilation mode of engines that compile nothing."""


class PagedLayer(InsertedLayer):
    """The layer has a kernel for its extra heads. It runs in two parts, as soon as the base shows what they read.

    Attributes:
        packed: the layer as an operator, see `kernels`; None: it runs as PyTorch's operators.
        direct: the engine is eager; a compiled one needs each kernel to be an operator of its graph.
    """

    def __init__(self, *shape: Any, **factory: Any) -> None:
        super().__init__(*shape, **factory)
        self.packed: PackedBlock | None = None

    def attach(self, vllm_config: VllmConfig, prefix: str, base: Attention, rotary: nn.Module) -> None:
        """Makes the kernel, which allocates the cache.

        Args:
            vllm_config: the engine's.
            prefix: a name for the cache, with the block's number in it.
            base: the block's kernel, whose window the extra heads have, too.
            rotary: turns queries and keys.
        """
        widths = self.attention.widths
        self.rotary = rotary
        self.kernel = Attention(
            widths.heads,
            widths.head_dim,
            self.attention.scaling,
            num_kv_heads=widths.kv_heads,
            cache_config=vllm_config.cache_config,
            per_layer_sliding_window=base.sliding_window,
            prefix=prefix,
        )
        self.direct = vllm_config.compilation_config.mode == NONE
        if self.direct:
            self.kernel.use_direct_call = True
        self.heads = [heads * widths.head_dim for heads in (widths.heads, widths.kv_heads, widths.kv_heads)]
        self.units = [widths.units, widths.units]
        self.cache = operators.LayerCache(rotary, self.kernel.sliding_window)

    def attend(self, inserted: Tensor, x: Tensor, state: Tensor, heads: Tensor, positions: Tensor) -> Tensor:
        """Adds what the extra heads give.

        Args:
            inserted: h' before the block, `[T, d']`.
            x: what the base's attention reads, `[T, d]`.
            state: the spread of h before the block, `[T, 1]`, or with an operator h itself, `[T, d]`.
            heads: of the base, `[T, H * head_dim]`.
            positions: of the tokens, `[T]`.

        Returns:
            h' in the middle of the block, `[T, d']`.
        """
        if self.packed is not None:
            return operators.attend(self, x, state, inserted, heads, positions)
        attention = self.attention
        query, key, value = attention.qkv(x, normed(inserted, state)).split(self.heads, dim=-1)
        if attention.query_norm is not None and attention.key_norm is not None:
            query, key = (
                norm(part.unflatten(-1, (-1, attention.widths.head_dim))).flatten(1)
                for norm, part in ((attention.query_norm, query), (attention.key_norm, key))
            )
        query, key = self.rotary(positions, query, key)
        return inserted + attention.out(heads, self.kernel(query, key, value))

    def feed(self, inserted: Tensor, x: Tensor, state: Tensor, units: Tensor) -> Tensor:
        """Adds what the extra units give.

        Args:
            inserted: h' in the middle of the block, `[T, d']`.
            x: what the base's FFN reads, `[T, d]`.
            state: the spread of h in the middle of the block, `[T, 1]`, or with an operator h itself, `[T, d]`.
            units: of the base, `[T, f]`.

        Returns:
            h' after the block, `[T, d']`.
        """
        if self.packed is not None:
            return self.packed.feed(x, state, inserted, units)
        ffn = self.ffn
        gate, up = ffn.gate_up(x, normed(inserted, state)).split(self.units, dim=-1)
        return inserted + ffn.down(units, ffn.activation(gate) * up)


def narrowed(rotary: Any, stride: int) -> Any:
    """Returns a base's rotation for heads `stride` times narrower, with every n-th of its frequencies."""
    if stride == 1:
        return rotary
    narrow = copy.deepcopy(rotary)
    narrow.head_size //= stride
    narrow.rotary_dim //= stride
    narrow.cos_sin_cache = torch.cat([table[:, ::stride] for table in rotary.cos_sin_cache.chunk(2, dim=-1)], dim=-1)
    return narrow


def spread_of(hidden: Tensor, least: Tensor) -> Tensor:
    """Returns the spread of h: sqrt(d) times what an RMS norm divides by, `[T, 1]` float32.

    Args:
        hidden: `[T, d]`.
        least: sqrt(d * epsilon), float32.
    """
    return torch.hypot(torch.linalg.vector_norm(hidden, dim=-1, keepdim=True, dtype=torch.float32), least)


def normed(inserted: Tensor, spread: Tensor) -> Tensor:
    """Returns h' over the spread of h, `[T, d']`. What is left of the norm is in the weights, see `fold_norms`."""
    return (inserted / spread).to(inserted.dtype)


@torch.no_grad()
def fold_norms(stream: InsertedStream) -> None:
    """Multiplies the norms' weights, and the sqrt(d) of `spread_of`, into the projections that follow them.

    Layers that are one operator have norms inside.
    """
    base = stream.widths.base
    for layer in stream.layers.children():
        module: Any = layer
        if module.packed is not None:
            continue
        for norm, joint in ((module.attention_norm, module.attention.qkv), (module.ffn_norm, module.ffn.gate_up)):
            joint.weight[:, base:] *= norm.weight * base**0.5
    stream.final_norm.weight.mul_(base**0.5)  # no projection follows this one

"""Runs inserted streams inside a vLLM decoder, by hooks on its unmodified modules.

The hooks read what the blocks compute, as `otterlm.taps` does of Transformers' models, and show it to the same stream.
vLLM's tensors are flat, `[T, d]`, with all requests' tokens in a row, and get a batch dimension of 1. The last hook
appends h' to what the final norm gives, so the decoder returns [h, h'], and the runner's choice of rows, chunked
prefill, prefix caching and prompt log probabilities carry both.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from otterlm.cache import CacheSlot
from otterlm.engines.vllm.upstream.names import (
    Attention,
    VllmConfig,
    current_platform,
    dispatch_cpu_unquantized_gemm,
    get_tensor_model_parallel_rank,
    get_tensor_model_parallel_world_size,
    tensor_model_parallel_all_reduce,
)
from otterlm.families import Family
from otterlm.families.points import STATE, HookPoint, by_part, fused_points
from otterlm.passes import StreamPass
from otterlm.stream import InsertedAttention, InsertedStream, Joint
from otterlm.taps import LayerTaps


@dataclass(slots=True)
class PagedTaps(LayerTaps):
    """The taps have the tokens' positions, `[T]`, beside those of `LayerTaps`."""

    positions: Tensor | None = None


class PagedAttention(InsertedAttention):
    """Computes the extra heads with vLLM's kernels and paged KV cache."""

    def attach(self, vllm_config: VllmConfig, prefix: str, base: Attention, rotary: nn.Module) -> None:
        """Makes the kernel, which allocates the cache.

        Args:
            vllm_config: the engine's.
            prefix: a name for the cache, with the block's number in it.
            base: the block's kernel, whose window the extra heads have, too.
            rotary: turns queries and keys.
        """
        self.rotary = rotary
        self.kernel = Attention(
            self.widths.heads,
            self.widths.head_dim,
            self.scaling,
            num_kv_heads=self.widths.kv_heads,
            cache_config=vllm_config.cache_config,
            per_layer_sliding_window=base.sliding_window,
            prefix=prefix,
        )

    def attend(self, query: Tensor, key: Tensor, value: Tensor, taps: LayerTaps, slot: CacheSlot) -> Tensor:
        """Attends, see `InsertedAttention`. B is 1, and queries and keys are not rotated yet."""
        assert isinstance(taps, PagedTaps)
        query, key, value = (part[0].flatten(1) for part in (query, key, value))  # [T, heads * dim]
        query, key = self.rotary(taps.positions, query, key)
        return self.kernel(query, key, value).unsqueeze(0)


def narrowed(rotary: Any, stride: int) -> Any:
    """Returns a base's rotation for heads `stride` times narrower, with every n-th of its frequencies."""
    if stride == 1:
        return rotary
    narrow = copy.deepcopy(rotary)
    narrow.head_size //= stride
    narrow.rotary_dim //= stride
    narrow.cos_sin_cache = torch.cat([table[:, ::stride] for table in rotary.cos_sin_cache.chunk(2, dim=-1)], dim=-1)
    return narrow


class ShardedJoint(nn.Module):
    """Is a `Joint` where each of several processes holds a part of what the base computed.

    What is inserted is small, and every process has all of it.

    Args:
        whole: the projection, with all weights.
        base: channels of the base, over all processes.
    """

    def __init__(self, whole: Joint, base: int) -> None:
        super().__init__()
        rank, size = get_tensor_model_parallel_rank(), get_tensor_model_parallel_world_size()
        mine = whole.weight[:, :base].chunk(size, dim=1)[rank]
        self.base = nn.Parameter(mine.clone(), requires_grad=False)
        self.inserted = nn.Parameter(whole.weight[:, base:].clone(), requires_grad=False)
        self.bias = whole.bias

    def forward(self, base: Tensor, inserted: Tensor) -> Tensor:
        """Projects as `Joint` does, with this process's part of the base channels."""
        of_base = tensor_model_parallel_all_reduce(F.linear(base[0], self.base))
        return of_base.unsqueeze(0) + F.linear(inserted, self.inserted, self.bias)


class PackedLinear(nn.Module):
    """Projects as vLLM does for the base on a CPU: its weights are reordered once.

    Args:
        linear: the projection.
    """

    cpu_linear: Callable[[Tensor, Tensor, Tensor | None], Tensor]

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        dispatch_cpu_unquantized_gemm(self, remove_weight=True)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Projects the inputs; several parts lie side by side."""
        x = inputs[0] if len(inputs) == 1 else torch.cat(inputs, dim=-1)
        return self.cpu_linear(x, self.weight, self.bias)


def shard_and_pack(stream: InsertedStream) -> None:
    """Shards a loaded stream's weights for this process, and packs them for the CPU kernel."""
    if get_tensor_model_parallel_world_size() > 1:
        widths = stream.widths
        for layer in stream.layers.children():
            module: Any = layer
            module.attention.out = ShardedJoint(module.attention.out, widths.base_heads * widths.base_head_dim)
            module.ffn.down = ShardedJoint(module.ffn.down, widths.base_units)
    if current_platform.is_cpu():
        for module in [*stream.modules()]:
            for name, part in module.named_children():
                if isinstance(part, nn.Linear):
                    setattr(module, name, PackedLinear(part))


class Widening:
    """Hooks a decoder of vLLM and drives the streams.

    Args:
        decoder: the model inside a causal language model of vLLM.
        family: where its parts are.
        streams: by adapter, in the order in which their h' are appended.
    """

    def __init__(self, decoder: Any, family: Family, streams: dict[str, InsertedStream]) -> None:
        self._family = family
        self._streams = streams
        self._passes: list[StreamPass] = []
        self._input_ids: Tensor | None = None
        self._positions: Tensor | None = None
        part, blocks = decoder.get_submodule, decoder.get_submodule(family.layers)
        part(family.embedding).register_forward_pre_hook(self._tokens)
        blocks[0].register_forward_pre_hook(self._begin)
        for index in sorted({layer for stream in streams.values() for layer in stream.widths.layers}):
            self._watch(index, blocks[index])
        part(family.final_norm).register_forward_hook(self._end)

    def _tokens(self, _: nn.Module, inputs: tuple[Tensor]) -> None:
        self._input_ids = inputs[0]

    def _begin(self, _: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._positions = inputs[0]
        self._passes = [StreamPass(stream, 0) for stream in self._streams.values()]
        if self._input_ids is not None:
            for stream in self._passes:
                stream.tokens(self._input_ids.unsqueeze(0))

    def _watch(self, index: int, block: Any) -> None:
        seen: dict[str, Any] = {}

        def inputs_of(points: tuple[HookPoint, ...]) -> Callable[..., None]:
            def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
                for point in points:
                    seen[point.tap] = point.of_inputs(inputs, {}).unsqueeze(0)

            return hook

        def outputs_of(points: tuple[HookPoint, ...]) -> Callable[..., None]:
            def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
                # The first norm takes the state alone and gives it normed.
                outputs = output if isinstance(output, tuple) else (output, inputs[0])
                for point in points:
                    seen[point.tap] = point.of_output(outputs).unsqueeze(0)
                    if point.position == STATE:  # the next norm adds to it in place
                        seen[point.tap] = seen[point.tap].clone()

            return hook

        def leave(_: nn.Module, __: tuple[Any, ...], ___: Any) -> None:
            taps = PagedTaps(rotary=None, positions=self._positions, **seen)
            seen.clear()
            for stream in self._passes:
                stream.layer(index, taps)

        for (path, side), points in by_part(fused_points(self._family)).items():
            part = block.get_submodule(path)
            if side == "input":
                part.register_forward_pre_hook(inputs_of(points))
            else:
                part.register_forward_hook(outputs_of(points))
        block.register_forward_hook(leave)

    def _end(self, _: nn.Module, __: tuple[Tensor, ...], output: Any) -> tuple[Tensor, Tensor]:
        normed, hidden = output
        passes, self._passes = self._passes, []
        self._input_ids = self._positions = None
        inserted = []
        for stream in passes:
            stream.final(hidden.unsqueeze(0), normed.unsqueeze(0))
            assert stream.state is not None
            inserted.append(stream.state[0, :, normed.shape[-1] :])
        return torch.cat((normed, *(part.to(normed.dtype) for part in inserted)), dim=-1), hidden

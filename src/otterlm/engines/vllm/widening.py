"""Runs inserted streams inside a vLLM decoder, by hooks on its unmodified modules.

The hooks read what the blocks compute, as `otterlm.taps` does of Transformers' models, and move h' as soon as they have
read what it takes. The last hook appends h' to what the final norm gives, so the decoder returns [h, h'], and the
runner's choice of rows, chunked prefill, prefix caching and prompt log probabilities carry both.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from otterlm.engines.vllm.kernels import operators
from otterlm.engines.vllm.paged import fold_norms, normed, spread_of
from otterlm.engines.vllm.upstream.names import (
    current_platform,
    dispatch_cpu_unquantized_gemm,
    get_tensor_model_parallel_rank,
    get_tensor_model_parallel_world_size,
    tensor_model_parallel_all_reduce,
)
from otterlm.errors import OtterError
from otterlm.families import Family
from otterlm.families.parts import norm_eps
from otterlm.stream import InsertedStream, Joint


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
        of_base = tensor_model_parallel_all_reduce(F.linear(base, self.base))
        return of_base + F.linear(inserted, self.inserted, self.bias)


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


def shard_and_pack(stream: InsertedStream, fused: bool) -> None:
    """Folds a loaded stream's norms into its weights, shards these for this process, and packs them for CPUs.

    Args:
        stream: with its weights.
        fused: each layer becomes an operator, see `kernels`.
    """
    if fused:
        for layer in stream.layers.children():
            operators.pack(layer)
    fold_norms(stream)
    if get_tensor_model_parallel_world_size() > 1:
        widths = stream.widths
        for layer in stream.layers.children():
            module: Any = layer
            module.attention.out = ShardedJoint(module.attention.out, widths.base_heads * widths.base_head_dim)
            module.ffn.down = ShardedJoint(module.ffn.down, widths.base_units)
    if current_platform.is_cpu():
        for module in [*stream.modules()]:
            for name, part in module.named_children():
                if isinstance(part, nn.Linear) and len(part.weight):
                    setattr(module, name, PackedLinear(part))


class Widening:
    """Hooks a decoder of vLLM and drives the streams.

    Its norms add the residual: they take what comes before them and the state, and return the normed state and the
    state. The first one takes the state alone.

    Args:
        decoder: the model inside a causal language model of vLLM.
        family: where its parts are.
        streams: by adapter, in the order in which their h' are appended.
        fused: their layers are operators, which read h, not its spread.
    """

    def __init__(self, decoder: Any, family: Family, streams: dict[str, InsertedStream], fused: bool) -> None:
        self._fused = fused
        self._streams = list(streams.values())
        self._inserted: list[Any] = []  # h' of each stream, [T, d'], while a pass runs
        self._positions: Tensor | None = None
        part, blocks = decoder.get_submodule, decoder.get_submodule(family.layers)
        norm, width = part(family.final_norm), self._streams[0].widths.base
        self._least = torch.tensor((width * norm_eps(norm)) ** 0.5, dtype=torch.float32)  # all norms have one epsilon
        part(family.embedding).register_forward_pre_hook(self._embed)
        blocks[0].register_forward_pre_hook(self._begin)
        for index in sorted({layer for stream in self._streams for layer in stream.widths.layers}):
            self._watch(index, blocks[index], family)
        norm.register_forward_hook(self._end)

    def _embed(self, _: nn.Module, inputs: tuple[Tensor]) -> None:
        self._inserted = [None if each.table is None else each.table(inputs[0]) for each in self._streams]

    def _begin(self, _: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._positions = inputs[0]
        self._inserted = self._inserted or [None] * len(self._streams)

    def _watch(self, index: int, block: Any, family: Family) -> None:
        layers: list[tuple[int, Any]] = [
            (number, stream.layers[str(index)])
            for number, stream in enumerate(self._streams)
            if index in stream.widths.layers
        ]
        seen: dict[str, Tensor] = {}

        def see(inputs: tuple[Tensor, ...], output: Any) -> Tensor:
            seen["x"], hidden = output if isinstance(output, tuple) else (output, inputs[0])
            # Now: the next norm adds to the state in place.
            seen["state"] = hidden if self._fused else spread_of(hidden, self._least)
            return hidden

        def enter(_: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
            hidden = see(inputs, output)
            for number, _ in layers:
                if self._inserted[number] is None:
                    self._inserted[number] = _projected(self._streams[number], hidden)

        def attend(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            for number, layer in layers:
                self._inserted[number] = layer.attend(
                    self._inserted[number], **seen, heads=inputs[0], positions=self._positions
                )

        def stand(_: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
            see(inputs, output)

        def feed(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            for number, layer in layers:
                self._inserted[number] = layer.feed(self._inserted[number], **seen, units=inputs[0])
            seen.clear()

        part = block.get_submodule
        part(family.attention_norm).register_forward_hook(enter)
        part(family.attention_output).register_forward_pre_hook(attend)
        part(family.ffn_norm).register_forward_hook(stand)
        part(family.down).register_forward_pre_hook(feed)

    def _end(self, _: nn.Module, __: tuple[Tensor, ...], output: Any) -> tuple[Tensor, Tensor]:
        x, hidden = output
        inserted, self._inserted, self._positions = self._inserted, [], None
        spread = spread_of(hidden, self._least)
        states = [
            normed(state, spread) * stream.final_norm.weight
            for stream, state in zip(self._streams, inserted, strict=True)
        ]
        return torch.cat((x, *states), dim=-1), hidden


def _projected(stream: InsertedStream, hidden: Tensor) -> Tensor:
    """Returns the h' that a stream without a table starts from."""
    if stream.projection is None:
        raise OtterError("this adapter embeds tokens (embedding: table): give input_ids, not inputs_embeds")
    projected: Tensor = stream.projection(hidden)
    return projected

"""Runs widened blocks as operators inside an eager engine, with its paged cache."""

from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn

from otterlm.engines.vllm.kernels.block import DTYPES, PackedBlock, Requests, cache_of, fits
from otterlm.engines.vllm.kernels.building import library
from otterlm.engines.vllm.upstream.names import (
    RotaryEmbedding,
    current_platform,
    get_attention_context,
    get_forward_context,
    get_tensor_model_parallel_world_size,
)

FIELD = "otter"
"""Otter's attribute on attention kernels, and on what vLLM says of a step."""


class Bound:
    """Belongs to a layer's attention kernel, by whose name a step finds the layer.

    Args:
        layer: a `PagedLayer`.
    """

    def __init__(self, layer: Any) -> None:
        self._layer = ref(layer)
        self._numbers: Tensor | None = None
        self._cache: Any = None
        self._rotary: Tensor | None = None

    @property
    def packed(self) -> PackedBlock:
        """Returns the layer's weights as they are now: adapters come and go."""
        layer: Any = self._layer()
        packed: PackedBlock = layer.packed
        return packed

    def cache(self, numbers: Tensor) -> Any:
        """Returns the layer's cache as the operator reads it, `[blocks, KV', block_size, 2 * head_dim]`."""
        if numbers is not self._numbers:
            layer: Any = self._layer()
            self._rotary = layer.rotary.cos_sin_cache.float().contiguous()
            self._cache = cache_of(numbers, self._rotary, layer.kernel.sliding_window)
            self._numbers = numbers
        return self._cache


def usable(vllm_config: Any, layers: list[Any]) -> bool:
    """Says whether layers of an engine can be operators. All are, or none.

    It needs a CPU, one process for the model, the cache in the model's dtype and for this engine alone, and layers that
    the operator has the maths of. What is not so runs as PyTorch's operators, with the same results. A compiled engine
    does: its compiler's code is as fast with few tokens, and faster with many.
    """
    return (
        current_platform.is_cpu()
        and all(layer.direct for layer in layers)
        and get_tensor_model_parallel_world_size() == 1
        and vllm_config.kv_transfer_config is None
        and vllm_config.cache_config.cache_dtype == "auto"
        and vllm_config.model_config.dtype in DTYPES
        and all(fits(layer) and _turns(layer.rotary) for layer in layers)
        and library() is not None
    )


def _turns(rotary: Any) -> bool:
    """Says whether a rotation is the plain one, by halves, of vLLM. Those with scaled tables are."""
    plain: bool = rotary.is_neox_style and type(rotary).forward_native is RotaryEmbedding.forward_native
    return plain


def pack(layer: Any) -> None:
    """Makes a layer with its weights an operator."""
    built: Any = library()  # see `usable`
    layer.packed = PackedBlock(built, layer)
    for linear in (layer.attention.qkv, layer.attention.out, layer.ffn.gate_up, layer.ffn.down):
        linear.weight = nn.Parameter(linear.weight.new_empty(0), requires_grad=False)


def bind(kernel: Any, layer: Any) -> None:
    """Makes a layer known by its attention kernel."""
    setattr(kernel, FIELD, Bound(layer))


def attend(x: Tensor, hidden: Tensor, inserted: Tensor, heads: Tensor, positions: Tensor, name: str) -> Tensor:
    """Adds what the extra heads give, see `PackedBlock.attend`.

    Args:
        name: of the layer's attention kernel.
    """
    metadata, kernel, numbers, slots = get_attention_context(name)
    if metadata is None:  # vLLM tries its largest step, without a cache
        return inserted.clone()
    bound: Bound = getattr(kernel, FIELD)
    batch = getattr(metadata, FIELD, None)
    if batch is None:  # the first layer of this step
        requests = Requests(metadata.query_start_loc, metadata.seq_lens, metadata.block_table, slots)
        batch = requests.batch()
        setattr(metadata, FIELD, batch)
    tokens = metadata.num_actual_tokens
    if tokens == len(inserted):
        return bound.packed.attend(x, hidden, inserted, heads, positions, batch, bound.cache(numbers))
    padded = torch.zeros_like(inserted)
    padded[:tokens] = attend(x[:tokens], hidden[:tokens], inserted[:tokens], heads[:tokens], positions[:tokens], name)
    return padded


def feed(x: Tensor, hidden: Tensor, inserted: Tensor, units: Tensor, name: str) -> Tensor:
    """Adds what the extra units give, see `PackedBlock.feed`.

    Args:
        name: of the layer's attention kernel.
    """
    bound: Bound = getattr(get_forward_context().no_compile_layers[name], FIELD)
    return bound.packed.feed(x, hidden, inserted, units)

"""Runs widened blocks as operators inside an eager engine, with its paged cache."""

from typing import Any

import torch
from torch import Tensor, nn

from otterlm.engines.vllm.kernels.block import DTYPES, PackedBlock, Requests, cache_of, fits
from otterlm.engines.vllm.kernels.building import library
from otterlm.engines.vllm.upstream.names import (
    RotaryEmbedding,
    current_platform,
    get_attention_context,
    get_tensor_model_parallel_world_size,
)

FIELD = "otter"
"""Otter's attribute on what vLLM says of a step."""


class LayerCache:
    """Shows the operator where a layer's keys and values are.

    Args:
        rotary: turns the layer's queries and keys.
        window: how many tokens a query sees, itself among them; None: all.
    """

    def __init__(self, rotary: Any, window: int | None) -> None:
        self._rotary, self._window = rotary, window
        self._numbers: Tensor | None = None
        self._table: Tensor | None = None
        self._shown: Any = None

    def show(self, numbers: Tensor) -> Any:
        """Returns the cache as the operator reads it; numbers are `[blocks, KV', block_size, 2 * head_dim]`."""
        if numbers is not self._numbers:
            self._table = self._rotary.cos_sin_cache.float().contiguous()
            self._shown = cache_of(numbers, self._table, self._window)
            self._numbers = numbers
        return self._shown


def usable(vllm_config: Any, layers: list[Any]) -> bool:
    """Says whether layers of an engine can be operators. All are, or none.

    It needs a CPU, one process for the model, the cache in the model's dtype and for this engine alone, and layers that
    the operator has the maths of. What is not so runs as PyTorch's operators, with the same results. A compiled engine
    does: its compiler's code is as fast with few tokens, and faster with many.
    """
    return (
        current_platform.is_cpu()
        and library() is not None  # it is built at the start in any case: guidance uses it in all engines
        and all(layer.direct for layer in layers)
        and get_tensor_model_parallel_world_size() == 1
        and vllm_config.kv_transfer_config is None
        and vllm_config.cache_config.cache_dtype == "auto"
        and vllm_config.model_config.dtype in DTYPES
        and all(fits(layer) and _turns(layer.rotary) for layer in layers)
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


def attend(layer: Any, x: Tensor, hidden: Tensor, inserted: Tensor, heads: Tensor, positions: Tensor) -> Tensor:
    """Adds what the extra heads give, see `PackedBlock.attend`.

    Args:
        layer: a `PagedLayer` that `pack` made an operator.
    """
    metadata, _, numbers, slots = get_attention_context(layer.kernel.layer_name)
    if metadata is None:  # vLLM tries its largest step, without a cache
        return inserted.clone()
    batch = getattr(metadata, FIELD, None)
    if batch is None:  # the first layer of this step
        requests = Requests(metadata.query_start_loc, metadata.seq_lens, metadata.block_table, slots)
        batch = requests.batch()
        setattr(metadata, FIELD, batch)
    tokens = metadata.num_actual_tokens
    if tokens == len(inserted):
        added: Tensor = layer.packed.attend(x, hidden, inserted, heads, positions, batch, layer.cache.show(numbers))
        return added
    padded = torch.zeros_like(inserted)
    padded[:tokens] = attend(layer, x[:tokens], hidden[:tokens], inserted[:tokens], heads[:tokens], positions[:tokens])
    return padded

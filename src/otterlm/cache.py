"""Stores the extra heads' keys and values as further layers of the ordinary KV cache.

Layer L + i of the cache, after the base's L layers, belongs to the i-th widened block. So whatever generation does to a
cache (reorder for beams, repeat, crop, offload) it does to these layers with the same call.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import EncoderDecoderCache

from otterlm.errors import OtterError


@dataclass(frozen=True, slots=True)
class CacheSlot:
    """A slot is the layer of a cache that holds the keys and values of a widened block.

    Attributes:
        block: the widened block.
        index: of the layer in the cache.
        stream: a number that tells inserted streams apart.
    """

    block: int
    index: int
    stream: int


def update_inserted(cache: Cache, key: Tensor, value: Tensor, slot: CacheSlot) -> tuple[Tensor, Tensor]:
    """Appends keys and values of one widened block, `[B, KV', T, head_dim]`, and returns all of them so far.

    Args:
        cache: already holds this step's keys and values of the base.
        key, value: of the extra heads.
        slot: where they are stored.

    Raises:
        OtterError: the cache was filled while this adapter was off, or with another adapter in its slot.
    """
    if isinstance(cache, EncoderDecoderCache):
        cache = cache.self_attention_cache
    layer, new = _layer(cache, slot)
    if new:
        layer.otter_stream = slot.stream
    elif getattr(layer, "otter_stream", slot.stream) != slot.stream:
        raise OtterError("the KV cache was filled by other adapters than are inserted now: start from an empty cache")
    key, value = cache.update(key, value, slot.index)
    _check_lengths(cache.get_seq_length(slot.block), cache.get_seq_length(slot.index), new)
    return key, value


def _layer(cache: Cache, slot: CacheSlot) -> tuple[Any, bool]:
    """Returns the layer in a slot, and whether it is still empty. It is made at its first use, of its block's kind."""
    while len(cache.layers) <= slot.index:
        # Slots before this one stay empty: they belong to adapters that are off, or to later blocks of the base where a
        # cache grows on demand (its layers are all of one kind).
        cache.layers.append(_empty_like(cache.layers[slot.block]))
    if cache.layers[slot.index].is_initialized:
        return cache.layers[slot.index], False
    # Another adapter may have made it, of the kind of another block.
    cache.layers[slot.index] = _empty_like(cache.layers[slot.block])
    return cache.layers[slot.index], True


def _check_lengths(base: int | Tensor, inserted: int | Tensor, new: bool) -> None:
    if isinstance(base, Tensor):
        # A static cache. To read a number from a GPU waits for it, and cannot be compiled: there the check comes once,
        # when the first inserted keys arrive.
        if torch.compiler.is_compiling() or not (new or base.device.type == "cpu"):
            return
        base, inserted = int(base), int(inserted)
    if base != inserted:
        raise OtterError(
            f"the KV cache holds {base} tokens of the base but {inserted} of the adapter: "
            "it was filled while the adapter was off; start from an empty cache"
        )


def _empty_like(layer: Any) -> Any:
    """Makes an empty cache layer of the same kind and settings, so that a mask for the base's keys fits it."""
    new = copy.copy(layer)
    for name, value in vars(layer).items():
        if isinstance(value, Tensor):
            # Counters are cleared; keys and values are made again for the extra heads.
            setattr(new, name, None if name in ("keys", "values") else value.clone())
        elif isinstance(value, (dict, list)):
            setattr(new, name, copy.copy(value))
    new.is_initialized = False
    new.reset()
    return new


def keep_path(cache: Cache, path: Tensor, tree_size: int) -> None:
    """Keeps one path of each row, in its order, of a tree of tokens at the end of the cache.

    Args:
        cache: a cache that can be cropped.
        path: `[B, n]`, which tokens of the tree each row keeps, in ascending order.
        tree_size: how many tokens the tree has.
    """
    length = path.shape[1]
    if length == tree_size:
        return
    rows, target = torch.arange(len(path), device=path.device)[:, None], torch.arange(length, device=path.device)
    for layer in cache.layers:
        if layer.is_initialized:
            for states in (layer.keys, layer.values):  # [B, heads, P + tree_size, head_dim]
                first = states.shape[-2] - tree_size
                states[rows, :, first + target] = states[rows, :, first + path]
    cache.crop(length - tree_size)

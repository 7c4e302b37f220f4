"""The extra heads' keys and values, kept as further layers of the ordinary KV cache.

Layer L + i of the cache, after the base's L layers, belongs to the i-th widened block. So whatever generation does to a
cache (reorder for beams, repeat, crop, offload) it does to ours with the same call.
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
class CachePlace:
    """Where a widened block keeps its keys and values.

    Attributes:
        block: the widened block.
        slot: the index of its layer in the cache.
        stream: a number that tells inserted streams apart.
    """

    block: int
    slot: int
    stream: int


def update_inserted(cache: Cache, key: Tensor, value: Tensor, place: CachePlace) -> tuple[Tensor, Tensor]:
    """Appends keys and values of one widened block, `[B, KV', T, head_dim]`, and returns all of them so far.

    Args:
        cache: already holds this step's keys and values of the base.
        key, value: of the extra heads.
        place: where they go.

    Raises:
        OtterError: the cache was filled while this adapter was off, or with another adapter in its slot.
    """
    if isinstance(cache, EncoderDecoderCache):
        cache = cache.self_attention_cache
    ours, new = _layer(cache, place)
    if new:
        ours.otter_stream = place.stream
    elif getattr(ours, "otter_stream", place.stream) != place.stream:
        raise OtterError("the KV cache was filled by other adapters than are inserted now: start from an empty cache")
    key, value = cache.update(key, value, place.slot)
    _check_lengths(cache.get_seq_length(place.block), cache.get_seq_length(place.slot), new)
    return key, value


def _layer(cache: Cache, place: CachePlace) -> tuple[Any, bool]:
    """The layer in a slot, and whether it is still empty. It is made at its first use, of its block's kind."""
    while len(cache.layers) <= place.slot:
        # Slots before ours stay empty: of adapters that are off, or of the base's blocks to come where a cache grows on
        # demand (its layers are all of one kind).
        cache.layers.append(_empty_like(cache.layers[place.block]))
    if cache.layers[place.slot].is_initialized:
        return cache.layers[place.slot], False
    # Another adapter may have made it, of the kind of another block.
    cache.layers[place.slot] = _empty_like(cache.layers[place.block])
    return cache.layers[place.slot], True


def _check_lengths(base: int | Tensor, ours: int | Tensor, new: bool) -> None:
    if isinstance(base, Tensor):
        # Of a static cache. To look at a number on a GPU waits for the GPU, and cannot be compiled: there a cache is
        # looked at once, when its first inserted keys arrive.
        if torch.compiler.is_compiling() or not (new or base.device.type == "cpu"):
            return
        base, ours = int(base), int(ours)
    if base != ours:
        raise OtterError(
            f"the KV cache holds {base} tokens of the base but {ours} of the adapter: "
            "it was filled while the adapter was off; start from an empty cache"
        )


def _empty_like(layer: Any) -> Any:
    """An empty cache layer of the same kind and settings, so that a mask made for the base's keys fits ours."""
    new = copy.copy(layer)
    for name, value in vars(layer).items():
        if isinstance(value, Tensor):
            # Counters are cleared where they are; keys and values are made anew for our heads.
            setattr(new, name, None if name in ("keys", "values") else value.clone())
        elif isinstance(value, (dict, list)):
            setattr(new, name, copy.copy(value))
    new.is_initialized = False
    new.reset()
    return new


def keep_path(cache: Cache, path: Tensor, tree_size: int) -> None:
    """Of a tree of tokens at the end of the cache, keeps one path of each row, in its order.

    Args:
        cache: a cache that can be cropped.
        path: `[B, n]`, which tokens of the tree each row keeps, in ascending order.
        tree_size: how many tokens the tree has.
    """
    kept = path.shape[1]
    if kept == tree_size:
        return
    rows, target = torch.arange(len(path), device=path.device)[:, None], torch.arange(kept, device=path.device)
    for layer in cache.layers:
        if layer.is_initialized:
            for states in (layer.keys, layer.values):  # [B, heads, P + tree_size, head_dim]
                first = states.shape[-2] - tree_size
                states[rows, :, first + target] = states[rows, :, first + path]
    cache.crop(kept - tree_size)

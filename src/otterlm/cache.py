"""Stores the extra heads' keys and values as further layers of the ordinary KV cache.

Layer L + i of the cache, after the base's L layers, belongs to the i-th widened block. So whatever generation does to a
cache (reorder for beams, repeat, crop, offload) it does to these layers with the same call.
"""

import copy
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import (
    CacheLayerMixin,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    EncoderDecoderCache,
    LinearAttentionCacheLayerMixin,
    QuantizedLayer,
    StaticLayer,
)

from otterlm.errors import OtterError


@dataclass(frozen=True, slots=True)
class CacheSlot:
    """A slot is the layer of a cache that holds the keys and values of a widened block.

    Attributes:
        block: the widened block.
        index: of the layer in the cache.
        stream: a number that tells inserted streams apart.
        whole: whether it keeps those of all tokens, whatever the block keeps for the base.
    """

    block: int
    index: int
    stream: int
    whole: bool = False


def update_inserted(cache: Cache, key: Tensor, value: Tensor, slot: CacheSlot) -> tuple[Tensor, Tensor]:
    """Appends keys and values of one widened block, `[B, KV', T, head_dim]`, and returns all of them so far.

    Args:
        cache: already holds this step's keys and values of the base.
        key, value: of the extra heads.
        slot: where they are stored.

    Raises:
        OtterError: the cache was filled while this adapter was off, or with another adapter in its slot.
    """
    cache = _of_text(cache)
    layer = inserted_layer(cache, slot)
    if not slot.whole:  # others are checked once a pass, see `Past`
        read = layer.get_seq_length() + value.shape[-2]
        mark = _check_lengths(cache.get_seq_length(slot.block), read, not layer.is_initialized)
        value = value if mark is None else value + mark
    return cache.update(key, value, slot.index)


def inserted_layer(cache: Cache, slot: CacheSlot) -> Any:
    """Returns the layer of a cache in a slot. It is made at its first use.

    Raises:
        OtterError: another adapter has filled it.
    """
    cache = _of_text(cache)
    while len(cache.layers) <= slot.index:
        # Slots before this one stay empty: they belong to adapters that are off, or to later blocks of the base where a
        # cache grows on demand (its layers are all of one kind).
        grown = getattr(cache, "layer_class_to_replicate", None)
        cache.layers.append(_new_layer(cache, slot) if grown is None else grown())
    layer = cache.layers[slot.index]
    if not layer.is_initialized:
        # Another adapter may have made it, of another kind.
        layer = cache.layers[slot.index] = _new_layer(cache, slot)
        layer.otter_stream = slot.stream
    elif getattr(layer, "otter_stream", slot.stream) != slot.stream:
        raise OtterError("the KV cache was filled by other adapters than are inserted now: start from an empty cache")
    return layer


@dataclass(frozen=True, slots=True)
class Past:
    """A past says how much of a text a cache holds before a pass.

    Attributes:
        tokens: how many, as the base's attention counts them; None where none of its layers counts.
        begun: whether there are any.
    """

    tokens: int | Tensor | None
    begun: bool

    @classmethod
    def of(cls, cache: Cache | None) -> Self:
        """Reads it from the base's layers."""
        layers = [] if cache is None else _of_text(cache).layers
        base = [layer for layer in layers if not hasattr(layer, "otter_stream")]
        counts = next((layer for layer in base if isinstance(layer, CacheLayerMixin) and layer.is_initialized), None)
        if counts is not None:
            length = counts.get_seq_length()  # a static cache counts on in the same tensor
            return cls(length.clone() if isinstance(length, Tensor) else length, True)
        states = [layer.has_previous_state for layer in base if isinstance(layer, LinearAttentionCacheLayerMixin)]
        return cls(None if states else 0, any(any(state.values()) for state in states))

    def check(self, inserted: Any) -> Tensor | None:
        """Checks that extra heads have read as much.

        Args:
            inserted: the layer of their keys.

        Returns:
            What makes a state wrong that has read less, see `_check_lengths`.

        Raises:
            OtterError: the cache was filled while the adapter was off.
        """
        if self.tokens is not None:
            return _check_lengths(self.tokens, inserted.get_seq_length(), not inserted.is_initialized)
        if self.begun and not inserted.is_initialized:
            raise OtterError("the cache was filled while the adapter was off; start from an empty one")
        return None


def _of_text(cache: Cache) -> Cache:
    return cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else cache


def _check_lengths(base: int | Tensor, inserted: int | Tensor, new: bool) -> Tensor | None:
    """Checks that base and adapter have read as many tokens.

    Args:
        base, inserted: how many each has read; tensors of a static cache.
        new: whether the adapter has read none before this pass.

    Returns:
        None where that was checked. To read a number from a GPU waits for it, and cannot be compiled: there it is a
        number to add, 0, or NaN where they differ, so that the signals are no numbers rather than wrong ones.

    Raises:
        OtterError: they have not.
    """
    if isinstance(base, Tensor) or isinstance(inserted, Tensor):
        counts = [count for count in (base, inserted) if isinstance(count, Tensor)]
        on_cpu = all(count.device.type == "cpu" for count in counts)
        if torch.compiler.is_compiling() or not (new or on_cpu):
            zero = torch.zeros((), device=counts[0].device)
            return zero.masked_fill(torch.as_tensor(base != inserted, device=zero.device), torch.nan)
        base, inserted = int(base), int(inserted)
    if base != inserted:
        raise OtterError(
            f"the KV cache holds {base} tokens of the base but {inserted} of the adapter: "
            "it was filled while the adapter was off; start from an empty cache"
        )
    return None


def _new_layer(cache: Cache, slot: CacheSlot) -> Any:
    """Makes a layer of the block's kind, or one that keeps all tokens, fixed or quantised as the base's layers are."""
    if not slot.whole:
        return _empty_like(cache.layers[slot.block])
    for layer in cache.layers:
        if isinstance(layer, StaticLayer) and not layer.is_sliding:
            return StaticLayer(layer.max_cache_len)
        if isinstance(layer, QuantizedLayer):
            return _empty_like(layer)
    return DynamicLayer()


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


def forget_last(cache: Cache) -> None:
    """Removes the last token of a cache, if its layers can give it back."""
    layers = _of_text(cache).layers
    for layer in layers:
        full = isinstance(layer, DynamicSlidingWindowLayer) and layer.get_seq_length() >= layer.sliding_window
        if full or type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer):
            return
    remove_last(cache, 1)


def remove_last(cache: Cache, count: int) -> None:
    """Removes the last `count` tokens of a cache that can be cropped."""
    for layer in _of_text(cache).layers:
        if getattr(layer, "is_initialized", True):  # Transformers before 5.22 cannot crop a layer that is empty
            layer.crop(-count)


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
    moved = bool((path != target).any())  # the first guesses are often right, and stand where they belong
    for layer in cache.layers:
        if moved and layer.is_initialized:
            for states in (layer.keys, layer.values):  # [B, heads, P + tree_size, head_dim]
                first = states.shape[-2] - tree_size
                states[rows, :, first + target] = states[rows, :, first + path]
    remove_last(cache, tree_size - length)

"""The extra heads' keys and values, kept as further layers of the ordinary KV cache.

Layer L + i of the cache, after the base's L layers, belongs to the i-th widened block. So whatever generation does to a
cache (reorder for beams, repeat, crop, offload) it does to ours with the same call.
"""

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

from otterlm.errors import OtterError


def update_inserted(
    cache: Cache, key: Tensor, value: Tensor, base_layer: int, cache_layer: int, owners: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """Appends keys and values of one widened block, `[B, KV', T, head_dim]`, and returns all of them so far.

    Args:
        cache: already holds this step's keys and values of the base.
        key, value: of the extra heads.
        base_layer: the widened block.
        cache_layer: the layer of the cache that is ours.
        owners: the block that each layer of the cache belongs to, the base's own and then all adapters'.

    Raises:
        OtterError: the cache was filled while this adapter was off.
    """
    while len(cache.layers) <= cache_layer:
        owner = owners[len(cache.layers)]
        # A cache that grows on demand has no layers of blocks to come; its layers are all of one kind.
        cache.layers.append(_new_layer_like(cache.layers[owner if owner < len(cache.layers) else base_layer]))
    key, value = cache.update(key, value, cache_layer)
    ours, base = cache.get_seq_length(cache_layer), cache.get_seq_length(base_layer)
    if ours != base:
        raise OtterError(
            f"the KV cache holds {base} tokens of the base but {ours} of the adapter: "
            "it was filled while the adapter was off; start from an empty cache"
        )
    return key, value


def _new_layer_like(layer: CacheLayerMixin) -> CacheLayerMixin:
    """An empty cache layer of the same kind and size, so that a mask made for the base's keys fits ours."""
    sizes = {name: getattr(layer, name) for name in ("sliding_window", "max_cache_len") if hasattr(layer, name)}
    if layer.is_sliding and "sliding_window" not in sizes:  # a static one keeps only the smaller of the two
        sizes["sliding_window"] = sizes["max_cache_len"]
    new = type(layer)(**sizes)
    if hasattr(layer, "record_past"):
        new.record_past = layer.record_past
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

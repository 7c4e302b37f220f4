"""Makes the attention masks of token trees, that is, of several continuations of one prefix in one sequence.

Training packs a pair as [shared prefix | chosen | rejected] and decoding packs the candidates of one step, or a tree
of drafts, behind the cached prefix. Either way the prefix is computed once and the branches do not see each other.
Transformers passes a 4-D mask through to every attention implementation that takes one.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_mask

from otterlm.errors import OtterError

SHARED = 0
"""The segment of tokens that every branch sees. Branches are 1, 2, ...; padding is negative."""


def branch_mask(segments: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns the mask of sequences packed as a shared prefix and branches.

    Args:
        segments: `[B, T]` int, `SHARED` for the common prefix, 1.. for the branches, negative for padding.
        dtype: the floating dtype of the attention scores the mask is added to.

    Returns:
        `[B, 1, T, T]`: 0 where a token may look, the dtype's lowest value where it may not. A padding token sees
        itself, so that no row is empty (an empty row is NaN after the softmax).
    """
    query, key = segments[:, :, None], segments[:, None, :]
    causal = torch.ones(segments.shape[1], segments.shape[1], dtype=torch.bool, device=segments.device).tril()
    visible = causal & ((key == SHARED) | (key == query)) & (key >= SHARED)
    visible |= torch.eye(segments.shape[1], dtype=torch.bool, device=segments.device)
    return additive(visible[:, None], dtype)


def tree_mask(seen: Tensor, ancestors: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns the mask of a tree of tokens after a cached prefix.

    Each token sees the prefix, the tokens it follows, and itself.

    Args:
        seen: `[B, P]` bool, the tokens in the KV cache that may be attended (no padding, inside the window).
        ancestors: `[N, N]` bool, in row i what token i of the tree sees of the tree. Rivals for one position are the
            identity matrix.
        dtype: as in `branch_mask`.

    Returns:
        `[B, 1, N, P + N]`.
    """
    prefix = seen[:, None, :].expand(-1, len(ancestors), -1)
    visible = torch.cat((prefix, ancestors.to(seen.device).expand(len(seen), -1, -1)), dim=-1)
    return additive(visible[:, None], dtype)


def token_positions(attention_mask: Tensor) -> Tensor:
    """Returns the position ids of padded sequences, `[B, T]`. Tokens are counted from 0, padding is not counted."""
    return (attention_mask.cumsum(dim=-1) - 1).clamp_min(0)


def additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns 0 where `visible` and the lowest finite value of `dtype` elsewhere, to be added to attention scores."""
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, torch.finfo(dtype).min)


def dense(mask: Any) -> Tensor | None:
    """Returns a mask as SDPA takes it: the block mask of flex attention as `[B, 1, T, S]` bool, any other as it is."""
    if not isinstance(mask, BlockMask):
        return mask
    batch, heads, queries, keys = mask.shape
    return create_mask(mask.mask_mod, batch, heads, queries, keys, device=mask.kv_num_blocks.device)


def visible(mask: Any, tokens: int, keys: int, past: int | Tensor, device: torch.device) -> Tensor | None:
    """Makes the mask of heads that see every token up to theirs, from the mask that a decoder was called with.

    Args:
        mask: `[B, S]`, 0 at padding, as long as the text or longer; `[B, 1, T, S]`, bool or additive; that of flex
            attention; one of these for each type of layer, by name; or None.
        tokens: T, of the pass.
        keys: of all tokens so far; more where a cache has free slots.
        past: tokens that were read before.
        device: where the mask goes.

    Returns:
        `[B, 1, T, keys]`, or None where each token sees all up to itself and SDPA knows that by itself.

    Raises:
        OtterError: the mask is of fewer keys.
    """
    if isinstance(mask, dict):
        mask = mask.get("full_attention", next((part for part in mask.values() if part is not None), None))
    mask, fixed = dense(mask), isinstance(past, Tensor)  # a cache of a fixed size counts in a tensor
    if mask is None and not fixed and (past == 0 or tokens == 1):
        return None
    if mask is not None and mask.shape[-1] < keys and not fixed:
        raise OtterError(f"the attention mask is of {mask.shape[-1]} tokens, but the text has {keys}")
    if mask is not None and mask.dim() == 4:
        return mask[..., :keys]
    row = past + torch.arange(tokens, device=device)[:, None]
    column = torch.arange(keys, device=device)
    seen = (column <= row)[None, None]  # [1, 1, T, keys]
    if mask is None:
        return seen
    known = mask[:, :keys].bool()
    known = torch.nn.functional.pad(known, (0, keys - known.shape[1]))  # [B, keys]
    return (seen & known[:, None, None]) | (column == row)  # a padding token sees itself: no row is empty

"""Inserts a stream into blocks that are read at their edge alone: the state that enters one, and what it adds.

This is what remains of the paper's widened block (`otterlm.stream`) where the block's inside is not read. There are
extra heads and units as there. The outputs of the base's heads and units are not known apart, so their sum is read:
what the block adds to its state. The norms and the rotation need nothing of the base.
"""

from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from otterlm.cache import CacheSlot, update_inserted
from otterlm.masks import visible
from otterlm.norms import InsertedNorm
from otterlm.rotary import Rotation, rotation_of
from otterlm.taps import EdgeTaps
from otterlm.widths import Widths

EPSILON = 1e-6
"""The norms have this epsilon."""
TEXT_AND_IMAGE = 4
"""A token has so many positions if its place in the text is one of them."""


@dataclass(frozen=True, slots=True)
class Sight:
    """The sight is what the extra heads of all blocks share in one pass.

    Attributes:
        rotation: turns them by the tokens' positions.
        mask: which keys each token sees, as SDPA takes it; None: all up to itself.
        blank: `[B, T]`, the tokens whose keys are to be zero, if any.
        mark: is added to the values, a scalar, see `otterlm.cache.Past.check`; None: nothing.
    """

    rotation: Rotation
    mask: Tensor | None
    blank: Tensor | None
    mark: Tensor | None

    @classmethod
    def of(cls, taps: EdgeTaps, layer: Any, widths: Widths, dtype: torch.dtype) -> Self:
        """Computes the sight of a pass.

        Args:
            taps: of its first widened block.
            layer: of the cache, where that block's extra heads keep their keys and values; None without a cache.
            widths: of the stream.
            dtype: of the heads.

        Raises:
            OtterError: the adapter was off when the cache was filled, or the mask is of fewer tokens.
        """
        tokens, device = taps.hidden.shape[1], taps.hidden.device
        past, keys = (0, tokens) if layer is None else (layer.get_seq_length(), layer.get_mask_sizes(tokens)[0])
        text = taps.text
        assert text is not None
        mark = None if layer is None else text.past.check(layer)
        positions = text.positions
        if positions is not None and positions.dim() == 3:
            # Models that see have places in time and in the image, with the place in the text before them or without.
            # Those of the image alone would say something else of the same token.
            positions = positions[0] if len(positions) == TEXT_AND_IMAGE else None
        if positions is None:
            positions = past + torch.arange(tokens, device=device)[None]
        mask, blank = text.mask, None
        if text.past.tokens is None and (mask is None or (isinstance(mask, Tensor) and mask.dim() == 2)):
            # Such bases know of padding only while they read it, so the keys have to remember it: they are zero.
            blank = None if mask is None else ~mask[:, -tokens:].bool()
            if layer is not None and past and (mask is None or mask.shape[1] == tokens):
                known = layer.keys[:, 0].any(dim=-1)  # [B, past]
                mask = torch.cat((known, known.new_ones(len(known), tokens) if blank is None else ~blank), dim=-1)
        return cls(
            rotation_of(positions, widths.head_dim, dtype), visible(mask, tokens, keys, past, device), blank, mark
        )


class EdgeAttention(nn.Module):
    """The attention has H' extra heads with q, k, v from [x, x']. They see all tokens before theirs."""

    is_causal = True

    def __init__(self, widths: Widths, **factory: Any) -> None:
        super().__init__()
        self.widths = widths
        self.num_key_value_groups = widths.heads // widths.kv_heads
        channels = (widths.heads + 2 * widths.kv_heads) * widths.head_dim
        self.qkv = nn.Linear(widths.base + widths.inserted, channels, bias=False, **factory)
        self.out = nn.Linear(widths.heads * widths.head_dim, widths.inserted, bias=False, **factory)

    def forward(self, inputs: Tensor, taps: EdgeTaps, slot: CacheSlot, sight: Sight) -> Tensor:
        """Maps `[B, T, d + d']` to `[B, T, d']`."""
        w = self.widths
        heads = self.qkv(inputs).unflatten(-1, (-1, w.head_dim))  # [B, T, H' + 2 KV', head_dim]
        turned, value = heads.split((w.heads + w.kv_heads, w.kv_heads), dim=2)
        query, key = sight.rotation(turned).split((w.heads, w.kv_heads), dim=2)
        query, key, value = (part.transpose(1, 2) for part in (query, key, value))
        if sight.blank is not None:
            key = key.masked_fill(sight.blank[:, None, :, None], 0)
        if sight.mark is not None:
            value = value + sight.mark
        if taps.cache is not None:
            key, value = update_inserted(taps.cache, key, value, slot)
        mask = sight.mask
        if mask is not None and mask.is_floating_point():
            mask = mask.to(query.dtype)
        extra, _ = ALL_ATTENTION_FUNCTIONS["sdpa"](self, query, key, value, mask, dropout=0.0)
        return self.out(extra.flatten(2))


class EdgeFFN(nn.Module):
    """f' extra units are gated. The down projection to h' reads them and what the block adds."""

    def __init__(self, widths: Widths, **factory: Any) -> None:
        super().__init__()
        self.gate_up = nn.Linear(widths.base + widths.inserted, 2 * widths.units, bias=False, **factory)
        self.down = nn.Linear(widths.base + widths.units, widths.inserted, bias=False, **factory)

    def forward(self, inputs: Tensor, added: Tensor) -> Tensor:
        """Maps `[B, T, d + d']` and `[B, T, d]` to `[B, T, d']`."""
        gate, up = self.gate_up(inputs).chunk(2, dim=-1)
        return self.down(torch.cat((added, F.silu(gate) * up), dim=-1))


class EdgeLayer(nn.Module):
    """The layer goes beside one block: its heads read the state before the block, its units the state after it."""

    def __init__(self, widths: Widths, **factory: Any) -> None:
        super().__init__()
        self.attention_norm = InsertedNorm(widths.base + widths.inserted, EPSILON, **factory)
        self.attention = EdgeAttention(widths, **factory)
        self.ffn_norm = InsertedNorm(widths.base + widths.inserted, EPSILON, **factory)
        self.ffn = EdgeFFN(widths, **factory)

    def forward(self, inserted: Tensor, taps: EdgeTaps, slot: CacheSlot, sight: Sight) -> Tensor:
        """Maps h' before the block to h' after it, `[B, T, d']`."""
        assert taps.added is not None
        before, after = taps.hidden, taps.hidden + taps.added
        x = self.attention_norm(torch.cat((before, inserted), dim=-1), before)
        middle = inserted + self.attention(x, taps, slot, sight)
        x = self.ffn_norm(torch.cat((after, middle), dim=-1), after)
        return middle + self.ffn(x, taps.added)

"""Computes the inserted stream, by the paper's maths (arXiv 2408.10764, section 3), top to bottom.

Every widened weight of the paper is [[W, 0], [A, B]]. The base computes W x by itself. Here are A and B, side by side
in one weight, and what they act on, [x, x']. The zero block is not stored anywhere: nothing here is ever passed to the
base.

Shapes: B batch, T tokens, d and d' the widths of the base's state h and the inserted one h', H and H' heads,
f and f' FFN units.
"""

import itertools
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.activations import ACT2FN
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from otterlm.cache import CacheSlot, update_inserted
from otterlm.causal import decoder_of
from otterlm.config import OtterConfig
from otterlm.edge import EPSILON, EdgeLayer
from otterlm.families import Family, Outline
from otterlm.families.facts import activation_of, decoder_config, residual_multiplier, window_of
from otterlm.families.parts import blocks_of, is_biased, norm_eps, part_of
from otterlm.masks import dense
from otterlm.norms import HeadNorm, InsertedNorm
from otterlm.rotary import Rotation
from otterlm.taps import LayerTaps
from otterlm.widths import Widths


class Joint(nn.Linear):
    """Projects what the base computed and what was inserted, side by side: [A B] of the paper."""

    def forward(self, base: Tensor, inserted: Tensor) -> Tensor:  # type: ignore[override]
        """Maps `[..., base channels]` and `[..., inserted channels]` to `[..., channels]`."""
        return super().forward(torch.cat((base, inserted), dim=-1))


class InsertedAttention(nn.Module):
    """Computes H' extra heads with q, k, v from [x, x'], and projects all H + H' heads to h'."""

    is_causal = True

    def __init__(self, widths: Widths, block: nn.Module, index: int, family: Family, **factory: Any) -> None:
        super().__init__()
        attention = block.get_submodule(family.attention)
        self.widths = widths
        self.base_config: Any = attention.config  # says which kernel the base uses, also after it is switched
        self.sliding_window = window_of(attention.config, family, index)
        self.num_key_value_groups = widths.heads // widths.kv_heads
        scaling = getattr(attention, family.attention_scale, widths.base_head_dim**-0.5)
        self.scaling = scaling * (widths.base_head_dim / widths.head_dim) ** 0.5
        biased = is_biased(block, family.query_key_value[0])
        channels = (widths.heads + 2 * widths.kv_heads) * widths.head_dim
        self.qkv = Joint(widths.base + widths.inserted, channels, bias=biased, **factory)
        reads = widths.base_heads * widths.base_head_dim + widths.heads * widths.head_dim
        self.out = Joint(reads, widths.inserted, bias=is_biased(block, family.attention_output), **factory)
        self.query_norm, self.key_norm = (
            HeadNorm(widths.head_dim, norm_eps(norm), family.centred, **factory) if norm is not None else None
            for norm in (part_of(block, family.query_norm), part_of(block, family.key_norm))
        )

    def forward(self, inserted: Tensor, taps: LayerTaps, slot: CacheSlot, rotation: Rotation | None) -> Tensor:
        """Maps x', `[B, T, d']`, beside the base's x to `[B, T, d']`."""
        w = self.widths
        heads = self.qkv(taps.attention_input, inserted).unflatten(-1, (-1, w.head_dim))  # [B, T, H' + 2 KV', head_dim]
        turned, value = heads.split((w.heads + w.kv_heads, w.kv_heads), dim=2)
        if self.query_norm is not None and self.key_norm is not None:
            query, key = turned.split((w.heads, w.kv_heads), dim=2)
            turned = torch.cat((self.query_norm(query), self.key_norm(key)), dim=2)
        if rotation is not None:
            turned = rotation(turned)
        query, key = turned.split((w.heads, w.kv_heads), dim=2)
        extra = self.attend(query, key, value, taps, slot)
        return self.out(taps.heads, extra)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, taps: LayerTaps, slot: CacheSlot) -> Tensor:
        """Attends with `[B, T, H', head_dim]` queries and `[B, T, KV', head_dim]` keys and values.

        Returns:
            `[B, T, H' * head_dim]`.
        """
        query, key, value = (part.transpose(1, 2) for part in (query, key, value))
        if taps.cache is not None:
            key, value = update_inserted(taps.cache, key, value, slot)
        mask, name = taps.mask, self.base_config._attn_implementation
        # SDPA computes the same from the same mask. "eager" is a function of each base's file, and flex attention
        # has no backward pass on a CPU.
        if name == "eager" or (name == "flex_attention" and (query.requires_grad or isinstance(mask, Tensor))):
            mask, name = dense(mask), "sdpa"
        if isinstance(mask, Tensor) and mask.is_floating_point():
            mask = mask.to(query.dtype)
        kernel = ALL_ATTENTION_FUNCTIONS[name]
        window = {} if self.sliding_window is None else {"sliding_window": self.sliding_window}
        extra, _ = kernel(self, query, key, value, mask, dropout=0.0, scaling=self.scaling, **window)
        return extra.flatten(2)


class InsertedFFN(nn.Module):
    """Computes f' extra units, gated like the base's, and projects all f + f' units down to h'.

    Of experts the projection reads their output and the f' units.
    """

    def __init__(self, widths: Widths, block: nn.Module, family: Family, activation: str, **factory: Any) -> None:
        super().__init__()
        self.gated = family.gated
        into = 2 * widths.units if self.gated else widths.units
        biased = bool(family.gate_up) and is_biased(block, family.gate_up[0])
        self.gate_up = Joint(widths.base + widths.inserted, into, bias=biased, **factory)
        reads = (widths.base_units or widths.base) + widths.units
        biased = family.down is not None and is_biased(block, family.down)
        self.down = Joint(reads, widths.inserted, bias=biased, **factory)
        self.activation = ACT2FN[activation]

    def forward(self, inserted: Tensor, taps: LayerTaps) -> Tensor:
        """Maps x', `[B, T, d']`, beside the base's x and units (or the output of experts) to `[B, T, d']`."""
        units = self.gate_up(taps.ffn_input, inserted)
        if self.gated:
            gate, up = units.chunk(2, dim=-1)
            units = self.activation(gate) * up
        else:
            units = self.activation(units)
        return self.down(taps.produced if taps.units is None else taps.units, units)


class InsertedLayer(nn.Module):
    """Moves h' through one block as the base moves h. It reads h and is never written to it.

    An engine overrides `forward`.
    """

    def __init__(
        self,
        widths: Widths,
        block: nn.Module,
        index: int,
        family: Family,
        activation: str,
        **factory: Any,
    ) -> None:
        super().__init__()

        def norm(path: str | None) -> InsertedNorm | None:
            base = part_of(block, path)
            return None if base is None else InsertedNorm.like(widths.inserted, base, family.centred, **factory)

        self.parallel = family.parallel
        self.residual = residual_multiplier(block.get_submodule(family.attention).config, family)
        self.attention_norm = norm(family.attention_norm)
        self.attention = InsertedAttention(widths, block, index, family, **factory)
        self.attention_post_norm = norm(family.attention_post_norm)
        self.ffn_norm = norm(family.ffn_norm)
        self.ffn = InsertedFFN(widths, block, family, activation, **factory)
        self.ffn_post_norm = norm(family.ffn_post_norm)

    def forward(self, inserted: Tensor, taps: LayerTaps, slot: CacheSlot, rotation: Rotation | None) -> Tensor:
        """Maps h' before the block to h' after it, `[B, T, d']`."""
        attended = self.attention(_normed(self.attention_norm, inserted, taps.hidden), taps, slot, rotation)
        attended = _normed(self.attention_post_norm, attended, taps.attended)
        middle = torch.add(inserted, attended, alpha=self.residual)
        x = _normed(self.ffn_norm, inserted if self.parallel else middle, taps.middle)
        produced = self.ffn(x, taps)
        produced = _normed(self.ffn_post_norm, produced, taps.produced)
        return torch.add(middle, produced, alpha=self.residual)


def _normed(norm: InsertedNorm | None, inserted: Tensor, hidden: Tensor | None) -> Tensor:
    return inserted if norm is None or hidden is None else norm(inserted, hidden)


_numbers = itertools.count()


class InsertedStream(nn.Module):
    """Holds the whole inserted stream.

    Args:
        config: its shape.
        base: the frozen model it is inserted into; only its configuration and the shapes of its parts are read.
        family: where those are; with an outline the blocks are read at their edge.
        dtype, device: of the inserted parameters, which are left uninitialised.
        layer: moves h' through the blocks whose inside is read; an engine has another class.
    """

    def __init__(
        self,
        config: OtterConfig,
        base: PreTrainedModel,
        family: Outline,
        dtype: torch.dtype,
        device: Any = None,
        layer: type[InsertedLayer] = InsertedLayer,
    ) -> None:
        super().__init__()
        self.number = next(_numbers)
        factory = {"dtype": dtype, "device": device}
        self.widths = widths = Widths.of(config, base, family)
        self.inside = isinstance(family, Family)
        self.first_slot = widths.depth * family.cache_layers  # after the base's own layers of the cache
        self.table = self.projection = None
        if config.embedding == "table":
            self.table = nn.Embedding(decoder_config(base).vocab_size, widths.inserted, **factory)
        else:
            self.projection = nn.Linear(widths.base, widths.inserted, bias=False, **factory)
        if isinstance(family, Family):
            self.rotation = family.rotation
            blocks, activation = blocks_of(base, family), activation_of(decoder_config(base))
            layers: dict[str, nn.Module] = {
                str(i): layer(widths, blocks[i], i, family, activation, **factory) for i in widths.layers
            }
            last = decoder_of(base).get_submodule(family.final_norm)
            norm = InsertedNorm.like(widths.inserted, last, family.centred, **factory)
        else:
            layers = {str(i): EdgeLayer(widths, **factory) for i in widths.layers}
            norm = InsertedNorm(widths.inserted, EPSILON, **factory)
        self.layers = nn.ModuleDict(layers)
        self.final_norm = norm

    def resize_table(self, rows: int | None) -> None:
        """Replaces the table by an uninitialised one of so many rows; None changes nothing."""
        if self.table is not None and rows not in (None, self.table.num_embeddings):
            weight = self.table.weight
            self.table = nn.Embedding(rows, self.widths.inserted, dtype=weight.dtype, device=weight.device)
            self.table.weight.requires_grad_(weight.requires_grad)

    @property
    def dtype(self) -> torch.dtype:
        """Returns the dtype of the inserted parameters."""
        return self.final_norm.weight.dtype

"""The inserted stream: the paper's maths (arXiv 2408.10764, section 3), top to bottom.

Every widened weight of the paper is [[W, 0], [A, B]]. The base computes W x by itself; here are A and B, side by side
in one weight, and what they act on, [x, x']. The zero block is not stored anywhere: nothing here is ever given to the
base.

Shapes: B batch, T tokens, d and d' the widths of the base's state h and the inserted one h', H and H' heads,
f and f' FFN units.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.activations import ACT2FN
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from otterlm.cache import update_inserted
from otterlm.config import OtterConfig
from otterlm.errors import OtterError
from otterlm.families import Family, family_of
from otterlm.taps import LayerTaps, Visitor


@dataclass(frozen=True, slots=True)
class Widths:
    """The sizes of a base and of what is inserted into it."""

    base: int  # d
    base_heads: int  # H
    base_kv_heads: int
    base_head_dim: int
    base_units: int  # f
    inserted: int  # d'
    heads: int  # H'
    kv_heads: int
    head_dim: int
    units: int  # f'
    layers: tuple[int, ...]

    @classmethod
    def of(cls, config: OtterConfig, base: Any) -> "Widths":
        """Sizes for a base's configuration (a `PretrainedConfig`).

        Raises:
            OtterError: what is to be inserted does not fit the base.
        """
        head_dim = getattr(base, "head_dim", None) or base.hidden_size // base.num_attention_heads
        layers = config.layers or tuple(range(base.num_hidden_layers))
        widths = cls(
            base=base.hidden_size,
            base_heads=base.num_attention_heads,
            base_kv_heads=base.num_key_value_heads or base.num_attention_heads,
            base_head_dim=head_dim,
            base_units=base.intermediate_size,
            inserted=config.hidden_size,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            head_dim=config.head_dim or head_dim,
            units=config.intermediate_size,
            layers=layers,
        )
        if layers[-1] >= base.num_hidden_layers:
            raise OtterError(
                f"layer {layers[-1]} does not exist: the base has {base.num_hidden_layers}, counted from 0"
            )
        if head_dim % widths.head_dim or widths.head_dim % 2:
            raise OtterError(f"head_dim {widths.head_dim} must be even and divide the base's, {head_dim}")
        for what, ours, theirs in (
            ("hidden_size", widths.inserted, widths.base),
            ("num_attention_heads", widths.heads, 4 * widths.base_heads),
            ("num_key_value_heads", widths.kv_heads, widths.base_kv_heads),
            ("intermediate_size", widths.units, widths.base_units),
            *((name, *pair) for name, pair in config.signal.limits(widths.base, base.vocab_size).items()),
        ):
            if ours > theirs:
                raise OtterError(f"{what} {ours} is too large for this base: at most {theirs}")
        return widths


class InsertedNorm(nn.Module):
    """x' = h' / RMS(h) * w': the statistics come from the base's state alone, or the base could not be left as it
    is."""

    def __init__(self, inserted: int, eps: float, **factory: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(inserted, **factory))
        self.eps = eps

    def forward(self, inserted: Tensor, hidden: Tensor) -> Tensor:
        """`[B, T, d']`, `[B, T, d]` to `[B, T, d']`."""
        mean_square = torch.linalg.vector_norm(hidden, dim=-1, keepdim=True, dtype=torch.float32).square()
        scale = torch.rsqrt(mean_square / hidden.shape[-1] + self.eps)  # [B, T, 1]
        return inserted * scale.to(inserted.dtype) * self.weight


class HeadNorm(nn.Module):
    """RMSNorm over each extra head's channels, for families that norm queries and keys."""

    def __init__(self, head_dim: int, eps: float, **factory: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(head_dim, **factory))
        self.eps = eps

    def forward(self, heads: Tensor) -> Tensor:
        return nn.functional.rms_norm(heads, self.weight.shape, self.weight, self.eps)


class InsertedAttention(nn.Module):
    """H' extra heads with q, k, v from [x, x'], and an output projection to h' that reads all H + H' heads."""

    is_causal = True

    def __init__(self, widths: Widths, attention: nn.Module, family: Family, norm_eps: float, **factory: Any) -> None:
        super().__init__()
        self.widths = widths
        self.base_config: Any = attention.config  # says which kernel the base uses, also after it is switched
        self.sliding_window = getattr(attention, "sliding_window", getattr(attention.config, "sliding_window", None))
        self.num_key_value_groups = widths.heads // widths.kv_heads
        self.scaling = widths.head_dim**-0.5
        biased = attention.get_submodule(family.query.rpartition(".")[2]).bias is not None
        out_biased = attention.get_submodule(family.attention_output.rpartition(".")[2]).bias is not None
        channels = (widths.heads + 2 * widths.kv_heads) * widths.head_dim
        self.qkv = nn.Linear(widths.base + widths.inserted, channels, bias=biased, **factory)
        reads = widths.base_heads * widths.base_head_dim + widths.heads * widths.head_dim
        self.out = nn.Linear(reads, widths.inserted, bias=out_biased, **factory)
        self.query_norm = HeadNorm(widths.head_dim, norm_eps, **factory) if family.query_norm else None
        self.key_norm = HeadNorm(widths.head_dim, norm_eps, **factory) if family.key_norm else None

    def forward(self, inputs: Tensor, taps: LayerTaps, place: "CachePlace") -> Tensor:
        """`[B, T, d + d']` to `[B, T, d']`."""
        w = self.widths
        heads = self.qkv(inputs).unflatten(-1, (-1, w.head_dim)).transpose(1, 2)  # [B, H' + 2 KV', T, head_dim]
        query, key, value = heads.split((w.heads, w.kv_heads, w.kv_heads), dim=1)
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        cos, sin = (_frequencies(table, w).to(query.dtype) for table in taps.rotary)
        query, key = _rotate(query, cos, sin), _rotate(key, cos, sin)
        if taps.cache is not None:
            key, value = update_inserted(taps.cache, key, value, place.block, place.layer, place.owners)
        mask = taps.mask
        if isinstance(mask, Tensor) and mask.is_floating_point():
            mask = mask.to(query.dtype)
        name = self.base_config._attn_implementation
        # "eager" is a function of each base's own file; SDPA computes the same from the same mask.
        attend = ALL_ATTENTION_FUNCTIONS["sdpa" if name == "eager" else name]
        window = {} if self.sliding_window is None else {"sliding_window": self.sliding_window}
        extra, _ = attend(
            self, query, key, value, mask, dropout=0.0, scaling=self.scaling, **window
        )  # [B, T, H', head_dim]
        return self.out(torch.cat((taps.heads, extra.flatten(2)), dim=-1))


def _frequencies(table: Tensor, widths: Widths) -> Tensor:
    """RoPE of heads smaller than the base's: every n-th frequency, what RoPE of that size has. `[B, 1, T,
    head_dim]`."""
    stride = widths.base_head_dim // widths.head_dim
    if stride > 1:
        table = table.unflatten(-1, (2, -1))[..., ::stride].flatten(-2)
    return table.unsqueeze(1)


def _rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding (arXiv 2104.09864), the halves of a head paired as Llama does."""
    left, right = heads.chunk(2, dim=-1)
    return heads * cos + torch.cat((-right, left), dim=-1) * sin


class InsertedFFN(nn.Module):
    """f' extra units gated like the base's, and a down projection to h' that reads all f + f' units."""

    def __init__(self, widths: Widths, activation: str, gate_bias: bool, down_bias: bool, **factory: Any) -> None:
        super().__init__()
        self.gate_up = nn.Linear(widths.base + widths.inserted, 2 * widths.units, bias=gate_bias, **factory)
        self.down = nn.Linear(widths.base_units + widths.units, widths.inserted, bias=down_bias, **factory)
        self.activation = ACT2FN[activation]

    def forward(self, inputs: Tensor, units: Tensor) -> Tensor:
        """`[B, T, d + d']`, `[B, T, f]` to `[B, T, d']`."""
        gate, up = self.gate_up(inputs).chunk(2, dim=-1)
        return self.down(torch.cat((units, self.activation(gate) * up), dim=-1))


class InsertedLayer(nn.Module):
    """What is inserted into one block: h' goes through it as h does, reading h and never written to it."""

    def __init__(self, widths: Widths, block: nn.Module, family: Family, activation: str, **factory: Any) -> None:
        super().__init__()
        part = block.get_submodule
        eps = getattr(part(family.attention_norm), family.norm_eps)
        self.attention_norm = InsertedNorm(widths.inserted, eps, **factory)
        self.attention = InsertedAttention(widths, part(family.attention), family, eps, **factory)
        self.ffn_norm = InsertedNorm(widths.inserted, eps, **factory)
        gate_bias, down_bias = (part(path).bias is not None for path in (family.gate, family.down))
        self.ffn = InsertedFFN(widths, activation, gate_bias, down_bias, **factory)

    def forward(self, inserted: Tensor, taps: LayerTaps, place: "CachePlace") -> Tensor:
        """h' before the block to h' after it, `[B, T, d']`."""
        x = torch.cat((taps.attention_input, self.attention_norm(inserted, taps.hidden)), dim=-1)
        inserted = inserted + self.attention(x, taps, place)
        x = torch.cat((taps.ffn_input, self.ffn_norm(inserted, taps.middle)), dim=-1)
        return inserted + self.ffn(x, taps.units)


class InsertedStream(nn.Module):
    """The whole inserted stream.

    Args:
        config: its shape.
        base: the frozen model it goes into; only its configuration and the shapes of its parts are read.
        dtype, device: of the inserted parameters, which are left uninitialised.
    """

    def __init__(self, config: OtterConfig, base: PreTrainedModel, dtype: torch.dtype, device: Any = None) -> None:
        super().__init__()
        factory = {"dtype": dtype, "device": device}
        family = family_of(base.config)
        decoder = base.get_decoder()
        blocks = decoder.get_submodule(family.layers)
        self.widths = widths = Widths.of(config, base.config)
        self.table = self.projection = None
        if config.embedding == "table":
            self.table = nn.Embedding(base.config.vocab_size, widths.inserted, **factory)
        else:
            self.projection = nn.Linear(widths.base, widths.inserted, bias=False, **factory)
        activation = base.config.hidden_act
        self.layers = nn.ModuleDict(
            {str(i): InsertedLayer(widths, blocks[i], family, activation, **factory) for i in widths.layers}
        )
        eps = getattr(decoder.get_submodule(family.final_norm), family.norm_eps)
        self.final_norm = InsertedNorm(widths.inserted, eps, **factory)

    @property
    def dtype(self) -> torch.dtype:
        """Of the inserted parameters."""
        return self.final_norm.weight.dtype


@dataclass(frozen=True, slots=True)
class CachePlace:
    """Where a widened block keeps its keys and values, see `otterlm.cache`."""

    block: int
    layer: int
    owners: tuple[int, ...]


class StreamPass(Visitor):
    """One forward pass of an inserted stream, driven by the base's.

    Args:
        stream: the parameters.
        first_cache_layer: where its keys and values start in the KV cache.
        owners: the block that each layer of the KV cache belongs to.

    Attributes:
        state: [h, h'] after the final norm, `[B, T, d + d']`, once the pass is over.
    """

    def __init__(self, stream: InsertedStream, first_cache_layer: int, owners: tuple[int, ...]) -> None:
        self.stream = stream
        self.state: Tensor | None = None
        self._places = {
            block: CachePlace(block, first_cache_layer + n, owners) for n, block in enumerate(stream.widths.layers)
        }
        self._inserted: Tensor | None = None

    def tokens(self, input_ids: Tensor) -> None:
        """E'[tokens], where there is a table."""
        if self.stream.table is not None:
            self._inserted = self.stream.table(input_ids)

    def layer(self, index: int, taps: LayerTaps) -> None:
        """Moves h' through one block, if it is widened."""
        place = self._places.get(index)
        if place is None:
            return
        taps = _cast(taps, self.stream.dtype)
        if self._inserted is None:
            if self.stream.projection is None:
                raise OtterError("this adapter embeds tokens (embedding: table): give input_ids, not inputs_embeds")
            self._inserted = self.stream.projection(taps.hidden)
        self._inserted = self.stream.layers[str(index)](self._inserted, taps, place)

    def final(self, hidden: Tensor, normed: Tensor) -> None:
        """Joins the two states for the heads."""
        assert self._inserted is not None
        inserted = self.stream.final_norm(self._inserted, hidden)
        self.state = torch.cat((normed.to(inserted.dtype), inserted), dim=-1)


def _cast(taps: LayerTaps, dtype: torch.dtype) -> LayerTaps:
    """The taps in the stream's own precision, where the base runs in another."""
    if taps.units.dtype == dtype:
        return taps
    names = ("hidden", "attention_input", "heads", "middle", "ffn_input", "units")
    return replace(taps, **{name: getattr(taps, name).to(dtype) for name in names})

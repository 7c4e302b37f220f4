"""Describes an architecture so that a stream can be inserted into it: where its parts are, and how they act."""

from dataclasses import dataclass, fields
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Outline:
    """An outline describes a decoder from outside its blocks, for a stream that reads the blocks at their edge.

    Paths start at the decoder (`otterlm.causal.decoder_of`). Where a part or a number is None the decoder does
    not have it.

    Attributes:
        model_types: `config.model_type` of the architectures described.
        layers: the list of blocks.
        embedding: token embedding.
        final_norm: the norm before the unembedding; None: the last block's state is what the decoder gives.
        embedding_multiplier: name of the number in the configuration by which the decoder multiplies its embeddings.
        embedding_scale: name of the number in the embedding module by which that multiplies its rows itself.
        logit_multiplier, logit_divisor: names of numbers in the configuration by which logits are multiplied, divided.
        logit_softcap: name of the number c in the configuration such that logits, at last, become c tanh(logits / c).
        window: name of the number of tokens in the configuration that sliding attention sees.
        layer_types: name of the list in the configuration that says what each block is; without one, a window is every
            block's.
        streams: the axis that counts the states where a block has several side by side; their mean is read.
        cache_layers: layers of the KV cache that a block takes.
        branches: whether texts with one beginning can be read as one sequence, kept apart by a mask of four dimensions.
        knows_logits: whether these facts say what is done to the logits.
        why: why no more is known of the blocks.
    """

    model_types: tuple[str, ...]
    layers: str
    embedding: str
    final_norm: str | None
    embedding_multiplier: str | None = None
    embedding_scale: str = "embed_scale"
    logit_multiplier: str | None = None
    logit_divisor: str | None = None
    logit_softcap: str | None = None
    window: str = "sliding_window"
    layer_types: str = "layer_types"
    streams: int | None = None
    cache_layers: int = 1
    branches: bool = True
    knows_logits: bool = True
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family(Outline):
    """A family also holds the paths of a block's parts, and the few ways in which families differ.

    Paths start at one block. Where a part or a number is None the family does not have it.

    Attributes:
        rotary: makes cos and sin, called with a state and position ids (and the layer's type, where there are several);
            its path starts at the decoder.
        attention: the attention module; called with `attention_mask`, `position_embeddings` (of a family with RoPE) and
            `past_key_values` or `layer_past`.
        query_key_value: the projections of its input: three paths, or one of all together.
        attention_output: the projection of the heads' outputs, head by head, `[B, T, H * head_dim]`.
        ffn: the module whose input is the FFN's.
        gate_up: the projections of that input: gate and up, both as one, or (not gated) up alone.
        down: the projection of the units' outputs; None for experts, whose units differ from token to token: the
            inserted FFN then reads the output of the block's FFN.
        attention_norm, ffn_norm: norms before attention and before the FFN; of a parallel block with one, the same.
        attention_post_norm, ffn_post_norm: norms of the outputs of attention and FFN.
        query_norm, key_norm: norms of queries and keys, where the block has them.
        fused: of a single `query_key_value`: `stacked` is all queries, all keys, all values; `grouped` is group by
            group the queries of a key/value head, its key and its value.
        gated: whether the FFN's units are gated.
        parallel: whether attention and FFN read the same state and are added to it together.
        centred: whether the norms subtract the mean (LayerNorm).
        norm_offset: what is added to a norm's weight.
        rotation: which channels RoPE pairs: `halves` (i, i + n / 2) or `pairs` (2i, 2i + 1).
        kv_heads: name of the number of key/value heads in the configuration; None: as many as heads.
        residual_multiplier: name of the number in the configuration by which the outputs of attention and FFN are
            multiplied before they are added to the state.
        attention_scale: name of the number in the attention module by which scores are multiplied; one over the root of
            the heads' size where a module has none.
    """

    final_norm: str
    attention: str
    query_key_value: tuple[str, ...]
    attention_output: str
    ffn: str
    gate_up: tuple[str, ...]
    down: str | None
    rotary: str | None = None
    attention_norm: str | None = None
    ffn_norm: str | None = None
    attention_post_norm: str | None = None
    ffn_post_norm: str | None = None
    query_norm: str | None = None
    key_norm: str | None = None
    fused: Literal["stacked", "grouped"] = "stacked"
    gated: bool = True
    parallel: bool = False
    centred: bool = False
    norm_offset: float = 0.0
    rotation: Literal["halves", "pairs"] = "halves"
    kv_heads: str | None = "num_key_value_heads"
    residual_multiplier: str | None = None
    attention_scale: str = "scaling"

    @property
    def outline(self) -> Outline:
        """Returns what is known of it outside its blocks."""
        return Outline(**{field.name: getattr(self, field.name) for field in fields(Outline)})

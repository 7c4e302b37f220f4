"""What must be known of an architecture to insert a stream into it: where its parts are. Facts, no code."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Family:
    """Paths of a decoder's parts. The first four start at the decoder (`get_decoder()`), the others at one block.

    Attributes:
        model_types: `config.model_type` of the architectures described.
        layers: the list of blocks.
        embedding: token embedding.
        final_norm: the norm before the unembedding.
        rotary: makes cos and sin, called with a state and position ids.
        attention_norm: the norm before attention. Its weight scales the inserted state too.
        attention: the attention module; called with `attention_mask`, `position_embeddings` and `past_key_values`.
        query, key, value: projections of the normed state.
        attention_output: the projection of the heads' outputs, head by head, `[B, T, H * head_dim]`.
        query_norm, key_norm: per-head norms before RoPE; None where the family has none.
        ffn_norm: the norm before the FFN.
        gate, up, down: projections of the gated FFN; `down` is called with the units' outputs.
        norm_eps: name of the epsilon on a norm module.
    """

    model_types: tuple[str, ...]
    layers: str
    embedding: str
    final_norm: str
    rotary: str
    attention_norm: str
    attention: str
    query: str
    key: str
    value: str
    attention_output: str
    query_norm: str | None
    key_norm: str | None
    ffn_norm: str
    gate: str
    up: str
    down: str
    norm_eps: str

"""Describes Falcon, StableLM and Cohere: attention and FFN side by side, in some models behind one norm."""

from dataclasses import replace
from typing import Any

from otterlm.errors import OtterError
from otterlm.families.family import Family
from otterlm.families.llama import LLAMA

FALCON = Family(
    model_types=("falcon",),
    layers="h",
    embedding="word_embeddings",
    final_norm="ln_f",
    rotary="rotary_emb",
    attention_norm="input_layernorm",
    attention="self_attention",
    query_key_value=("self_attention.query_key_value",),
    attention_output="self_attention.dense",
    ffn_norm="input_layernorm",
    ffn="mlp",
    gate_up=("mlp.dense_h_to_4h",),
    down="mlp.dense_4h_to_h",
    fused="grouped",
    gated=False,
    parallel=True,
    centred=True,
    kv_heads="num_kv_heads",
)

STABLELM = replace(
    LLAMA,
    model_types=("stablelm",),
    query_norm="self_attn.q_layernorm",
    key_norm="self_attn.k_layernorm",
    centred=True,
)

COHERE = replace(
    LLAMA,
    model_types=("cohere",),
    ffn_norm="input_layernorm",
    query_norm="self_attn.q_norm",
    key_norm="self_attn.k_norm",
    parallel=True,
    centred=True,
    rotation="pairs",
    logit_multiplier="logit_scale",
)


def falcon(config: Any) -> Family:
    """Returns the family of a Falcon, of either architecture.

    Raises:
        OtterError: it has ALiBi rather than RoPE.
    """
    if config.alibi:
        raise OtterError("a Falcon with ALiBi is not supported: the extra heads would need biases of their own")
    if config.new_decoder_architecture:
        two = config.num_ln_in_parallel_attn in (None, 2)
        return replace(FALCON, attention_norm="ln_attn", ffn_norm="ln_mlp") if two else FALCON
    family = replace(FALCON, kv_heads="multi_query" if config.multi_query else None)
    if config.parallel_attn:
        return family
    return replace(family, parallel=False, ffn_norm="post_attention_layernorm")


def stablelm(config: Any) -> Family:
    """Returns the family of a StableLM, parallel (behind one norm) or not."""
    return replace(STABLELM, parallel=True, ffn_norm="input_layernorm") if config.use_parallel_residual else STABLELM

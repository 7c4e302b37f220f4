"""Describes GPT-2, OPT and GPT-NeoX: LayerNorm, biases, no gate; positions learned, or RoPE on a part of a head."""

from dataclasses import replace
from typing import Any

from otterlm.errors import OtterError
from otterlm.families.family import Family

GPT2 = Family(
    model_types=("gpt2",),
    layers="h",
    embedding="wte",
    final_norm="ln_f",
    attention_norm="ln_1",
    attention="attn",
    query_key_value=("attn.c_attn",),
    attention_output="attn.c_proj",
    ffn_norm="ln_2",
    ffn="mlp",
    gate_up=("mlp.c_fc",),
    down="mlp.c_proj",
    gated=False,
    centred=True,
    kv_heads=None,
)

OPT = Family(
    model_types=("opt",),
    layers="layers",
    embedding="embed_tokens",
    final_norm="final_layer_norm",
    attention_norm="self_attn_layer_norm",
    attention="self_attn",
    query_key_value=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    attention_output="self_attn.out_proj",
    ffn_norm="final_layer_norm",
    ffn="fc1",
    gate_up=("fc1",),
    down="fc2",
    gated=False,
    centred=True,
    kv_heads=None,
)

NEOX = Family(
    model_types=("gpt_neox",),
    layers="layers",
    embedding="embed_in",
    final_norm="final_layer_norm",
    rotary="rotary_emb",
    attention_norm="input_layernorm",
    attention="attention",
    query_key_value=("attention.query_key_value",),
    attention_output="attention.dense",
    ffn_norm="post_attention_layernorm",
    ffn="mlp",
    gate_up=("mlp.dense_h_to_4h",),
    down="mlp.dense_4h_to_h",
    fused="grouped",
    gated=False,
    parallel=True,
    centred=True,
    kv_heads=None,
)


def opt(config: Any) -> Family:
    """Returns OPT's family. The 350M model, with norms after the sum and projected embeddings, differs.

    Raises:
        OtterError: the model is that one, or like it.
    """
    if not config.do_layer_norm_before:
        raise OtterError("an OPT with its norms after the residual sum (do_layer_norm_before: false) is not supported")
    if config.word_embed_proj_dim != config.hidden_size:
        raise OtterError(
            f"an OPT with projected embeddings (word_embed_proj_dim: {config.word_embed_proj_dim}) is not supported"
        )
    return OPT


def neox(config: Any) -> Family:
    """Returns the family of GPT-NeoX and Pythia, parallel or not."""
    return replace(NEOX, parallel=config.use_parallel_residual)

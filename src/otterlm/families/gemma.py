"""Describes Gemma 2 and 3: norms before and after each part, weights from 1, scaled embeddings, sliding windows."""

from dataclasses import replace

from otterlm.families.llama import LLAMA

GEMMA2 = replace(
    LLAMA,
    model_types=("gemma2",),
    attention_post_norm="post_attention_layernorm",
    ffn_norm="pre_feedforward_layernorm",
    ffn_post_norm="post_feedforward_layernorm",
    norm_offset=1.0,
    logit_softcap="final_logit_softcapping",
)

GEMMA3 = replace(
    GEMMA2,
    model_types=("gemma3_text",),
    query_norm="self_attn.q_norm",
    key_norm="self_attn.k_norm",
)

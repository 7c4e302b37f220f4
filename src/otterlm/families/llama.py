"""Llama and the families built like it: pre-norm RMSNorm, RoPE, grouped-query attention, a gated FFN."""

from dataclasses import replace

from otterlm.families.family import Family

LLAMA = Family(
    model_types=("llama", "mistral", "qwen2"),
    layers="layers",
    embedding="embed_tokens",
    final_norm="norm",
    rotary="rotary_emb",
    attention_norm="input_layernorm",
    attention="self_attn",
    query="self_attn.q_proj",
    key="self_attn.k_proj",
    value="self_attn.v_proj",
    attention_output="self_attn.o_proj",
    query_norm=None,
    key_norm=None,
    ffn_norm="post_attention_layernorm",
    gate="mlp.gate_proj",
    up="mlp.up_proj",
    down="mlp.down_proj",
    norm_eps="variance_epsilon",
)

QWEN3 = replace(LLAMA, model_types=("qwen3",), query_norm="self_attn.q_norm", key_norm="self_attn.k_norm")

"""Describes Llama and the families like it: RMSNorm before each part, RoPE, grouped-query attention, a gated FFN."""

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
    query_key_value=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    attention_output="self_attn.o_proj",
    ffn_norm="post_attention_layernorm",
    ffn="mlp",
    gate_up=("mlp.gate_proj", "mlp.up_proj"),
    down="mlp.down_proj",
)

QWEN3 = replace(LLAMA, model_types=("qwen3",), query_norm="self_attn.q_norm", key_norm="self_attn.k_norm")

PHI3 = replace(
    LLAMA,
    model_types=("phi3",),
    query_key_value=("self_attn.qkv_proj",),
    gate_up=("mlp.gate_up_proj",),
)

OLMO2 = replace(
    QWEN3,
    model_types=("olmo2",),
    attention_norm=None,
    ffn_norm=None,
    attention_post_norm="post_attention_layernorm",
    ffn_post_norm="post_feedforward_layernorm",
)
"""The norms come after attention and after the FFN."""

GRANITE = replace(
    LLAMA,
    model_types=("granite",),
    embedding_multiplier="embedding_multiplier",
    residual_multiplier="residual_multiplier",
    logit_divisor="logits_scaling",
)
"""Multiplies embeddings, scores and what is added to the state, and divides its logits."""

MIXTRAL = replace(LLAMA, model_types=("mixtral",), gate_up=(), down=None)
GRANITE_MOE = replace(GRANITE, model_types=("granitemoe",), ffn="block_sparse_moe", gate_up=(), down=None)
QWEN3_MOE = replace(QWEN3, model_types=("qwen3_moe",), gate_up=(), down=None)

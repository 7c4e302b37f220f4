"""Makes tiny random models of every family, and of the variants that a family's configuration makes."""

from typing import Any

from conftest import randomize
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
WIDE = {"head_dim": 16}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "mlp_only_layers": []}
GRANITE = {
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.4,
    "attention_multiplier": 0.2,
    "logits_scaling": 2.5,
}
GEMMA = {**WIDE, "query_pre_attn_scalar": 12, "sliding_window": 8}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "mistral": ("mistral", {"sliding_window": None}),
    "qwen2": ("qwen2", {}),
    "granite": ("granite", GRANITE),
    "qwen3": ("qwen3", WIDE),
    "phi3": ("phi3", {"partial_rotary_factor": 0.5}),
    "olmo2": ("olmo2", {}),
    "gemma2": ("gemma2", GEMMA | {"attn_logit_softcapping": 20.0, "final_logit_softcapping": 5.0}),
    "gemma3": ("gemma3_text", GEMMA),
    "mixtral": ("mixtral", {"num_local_experts": 4, "sliding_window": None}),
    "granite-moe": ("granitemoe", GRANITE | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen3-moe": ("qwen3_moe", WIDE | EXPERTS),
    "gpt2": ("gpt2", {"n_inner": 48}),
    "opt": ("opt", {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "gpt-neox": ("gpt_neox", {"rotary_pct": 0.5}),
    "gpt-neox sequential": ("gpt_neox", {"use_parallel_residual": False}),
    "falcon": ("falcon", {"ffn_hidden_size": 48}),
    "falcon grouped": ("falcon", {"ffn_hidden_size": 48, "new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon sequential": ("falcon", {"ffn_hidden_size": 48, "parallel_attn": False, "multi_query": False}),
    "stablelm": ("stablelm", {"use_qkv_bias": True}),
    "stablelm parallel": ("stablelm", {"use_parallel_residual": True, "qk_layernorm": True}),
    "cohere": ("cohere", {}),
    "cohere normed": ("cohere", {"use_qk_norm": True}),
}


def family_base(
    name: str, dtype: Any = None, attention: str = "sdpa", seed: int = 0, **overrides: Any
) -> PreTrainedModel:
    """Makes a frozen random model."""
    model_type, settings = FAMILIES[name]
    config = AutoConfig.for_model(model_type, **(SIZES | settings | overrides))
    base = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    randomize(base, seed)
    base = base.requires_grad_(False).eval()
    return base if dtype is None else base.to(dtype)


def unlisted(model_type: str, **overrides: Any) -> PreTrainedModel:
    """Makes a model of a type that need not be listed."""
    config = AutoConfig.for_model(model_type, **(SIZES | overrides))
    base = AutoModelForCausalLM.from_config(config)
    randomize(base, 0)
    return base.requires_grad_(False).eval()

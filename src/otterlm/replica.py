"""Makes a small copy of a base, with the same blocks but random weights. A trial runs on it.

A base may be large, quantised, offloaded, in half precision or without weights. A trial needs exact sums, a short time,
and only what the blocks do, which the configuration determines.
"""

import copy
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from otterlm.causal import decoder_of
from otterlm.errors import OtterError, reason
from otterlm.families.facts import decoder_config

PARAMETERS = 32_000_000
"""A replica has at most so many parameters, 128 MB of them."""
MOST = 250_000_000
"""Where an architecture cannot be made smaller it has at most so many, 1 GB of them."""

FEWER = {"num_hidden_layers": 8, "vocab_size": 128, "vocab_size_per_layer_input": 128}
NARROWER = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rotary_dim": 16,
    "hidden_size_per_layer_input": 16,
    **dict.fromkeys(("linear_head_dim", "linear_key_head_dim", "linear_value_head_dim"), 16),
    **dict.fromkeys(("linear_num_heads", "linear_num_value_heads"), 4),
    "linear_num_key_heads": 2,
    **dict.fromkeys(("chunk_size", "mamba_chunk_size"), 16),
}
EXPERTS = {
    **dict.fromkeys(("n_routed_experts", "num_experts", "num_local_experts", "moe_num_experts", "zero_expert_num"), 8),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_topk"), 2),
    **dict.fromkeys(("n_group", "topk_group"), 1),
}
"""Experts take the most room."""
LATENT = {
    "num_key_value_heads": 4,
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank"), 32),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"), 16),
    "qk_head_dim": 32,
}
"""In latent attention every head has keys."""
MAMBA = {
    **dict.fromkeys(("num_heads", "mamba_n_heads", "n_mamba_heads", "mamba_num_heads"), 8),
    **dict.fromkeys(("mamba_d_head", "mamba_head_dim", "mamba_headdim", "mamba_d_state", "state_size"), 16),
    **dict.fromkeys(("n_groups", "mamba_n_groups", "mamba_ngroups"), 1),
    **dict.fromkeys(("mamba_d_ssm", "attention_hidden_size"), 128),
    "attention_head_dim": 32,
}
"""The heads of a Mamba span its inner width, which is twice the model's."""

NARROW = FEWER | NARROWER
SMALLEST = NARROW | EXPERTS | LATENT | MAMBA
DEEP = {name: limit for name, limit in SMALLEST.items() if name != "num_hidden_layers"}
"""Some kinds of layers come late, or are counted from the end."""
LIMITS: tuple[dict[str, int], ...] = ({}, NARROW, NARROW | EXPERTS, SMALLEST, DEEP, FEWER)
"""What a replica has less of, in the order in which it is tried."""


def replica(base: PreTrainedModel) -> PreTrainedModel:
    """Makes a model of the base's architecture in float32 on the CPU.

    It is as deep and wide as its configuration says where that is not too large.

    Raises:
        OtterError: none can be made.
    """
    failures = []
    for limits in LIMITS:
        try:
            config = _smaller(decoder_config(base), limits)
            with torch.device("meta"):
                size = _build(base, config).num_parameters()
            if size <= (MOST if limits else PARAMETERS):
                return _random(base, config)
        except Exception as error:  # a configuration that this architecture does not allow
            failures.append(reason(error))
    why = failures[0] if failures else f"it would have more than {MOST:,} parameters"
    raise OtterError(f"no small model of it can be made to try what it does: {why}")


def _smaller(config: Any, most: dict[str, int]) -> Any:
    """Returns the configuration with no number above these limits."""
    small = copy.deepcopy(config)
    for name, value in vars(small).items():
        if isinstance(value, PretrainedConfig):
            setattr(small, name, _smaller(value, most))
        elif isinstance(value, list) and len(value) == getattr(config, "num_hidden_layers", None):
            # The list says what each layer is.
            setattr(small, name, value[: most.get("num_hidden_layers")])
    for name, limit in most.items():
        value = _number(small, name)
        if value is not None and value > limit:
            setattr(small, name, limit)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id") if most else ():
        if hasattr(small, name):
            setattr(small, name, 0)
    return small


def _number(config: Any, name: str) -> int | None:
    """Returns a whole number of a configuration; None where it has none, or one for each layer."""
    try:
        value = getattr(config, name)
    except Exception:  # Transformers has an error for what layers have each
        return None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _build(base: PreTrainedModel, config: Any) -> PreTrainedModel:
    """Builds a model of the base's class; of a model that is more than a decoder, of the decoder's class."""
    config._attn_implementation = "eager"
    if not isinstance(base, PreTrainedModel):  # PEFT's
        return AutoModelForCausalLM.from_config(config)
    model_class: Any = type(base) if base.config is decoder_config(base) else type(decoder_of(base))
    return model_class(config)


@torch.no_grad()
def _random(base: PreTrainedModel, config: Any) -> PreTrainedModel:
    """Makes a model with random weights, so that no two channels are equal: a wrong fact might not show otherwise."""
    with torch.device("cpu"):
        torch.manual_seed(0)
        model = _build(base, config).float().eval()
        for parameter in model.parameters():
            noise = torch.randn_like(parameter)
            parameter.copy_(noise * parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 1 + 0.3 * noise)
        model(torch.zeros(1, 2, dtype=torch.long))  # some sizes only show here that they do not fit
    return model

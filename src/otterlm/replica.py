"""A small copy of a base, with the same blocks but random weights: what a trial runs on.

A base itself may be large, quantised, offloaded, in half precision or without weights; a trial needs exact sums and a
second, and only what the blocks do, which the configuration says.
"""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from otterlm.errors import OtterError, reason
from otterlm.families.facts import decoder_config

PARAMETERS = 32_000_000
"""The most that a replica is to have: 128 MB."""

FEWER = {"num_hidden_layers": 8, "vocab_size": 128}
NARROWER = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}


def replica(base: PreTrainedModel) -> PreTrainedModel:
    """A model of the base's architecture in float32 on the CPU, as deep and wide as its configuration says where that
    is not too large.

    Raises:
        OtterError: none can be made.
    """
    failures = []
    for config in _configurations(decoder_config(base)):
        try:
            with torch.device("meta"):
                size = _build(base, config).num_parameters()
            # The narrowest is taken whatever its size.
            if size <= PARAMETERS or config.vocab_size == FEWER["vocab_size"]:
                return _random(base, config)
        except Exception as error:  # a configuration that this architecture does not allow
            failures.append(reason(error))
    raise OtterError(
        f"architecture {decoder_config(base).model_type!r} is not known, and no small model of it can be made to try "
        f"the known families on: {failures[0]} (see docs/families.md to add it)"
    )


def _configurations(config: Any) -> Iterator[Any]:
    """The configuration as it is, and with less of everything."""
    yield copy.deepcopy(config)
    yield _smaller(config, FEWER | NARROWER)
    yield _smaller(config, FEWER)


def _smaller(config: Any, most: dict[str, int]) -> Any:
    small = copy.deepcopy(config)
    depth, kept = config.num_hidden_layers, min(config.num_hidden_layers, most["num_hidden_layers"])
    for name, value in vars(small).items():
        # What each layer is.
        if isinstance(value, list) and len(value) == depth:
            setattr(small, name, value[:kept])
    for name, limit in most.items():
        value = getattr(small, name, None)
        if isinstance(value, int) and value > limit:
            setattr(small, name, limit)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if hasattr(small, name):
            setattr(small, name, 0)
    return small


def _build(base: PreTrainedModel, config: Any) -> PreTrainedModel:
    """From the base's own class; of a model that is more than a decoder, from the decoder's."""
    config._attn_implementation = "eager"
    if not isinstance(base, PreTrainedModel):  # PEFT's
        return AutoModelForCausalLM.from_config(config)
    whole: Any = type(base) if base.config is decoder_config(base) else type(base.get_decoder())
    return whole(config)


@torch.no_grad()
def _random(base: PreTrainedModel, config: Any) -> PreTrainedModel:
    """Values that no two channels share, or a wrong fact might not show."""
    with torch.device("cpu"):
        torch.manual_seed(0)
        model = _build(base, config).float().eval()
        for parameter in model.parameters():
            noise = torch.randn_like(parameter)
            parameter.copy_(noise * parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 1 + 0.3 * noise)
        model(torch.zeros(1, 1, dtype=torch.long))  # some sizes only show here that they do not fit
    return model

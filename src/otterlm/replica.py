"""Makes a small copy of a base, with the same blocks but random weights. A trial runs on it.

A base may be large, quantised, offloaded, in half precision or without weights. A trial needs exact sums, a short time,
and only what the blocks do, which the configuration determines.
"""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from otterlm.errors import OtterError, reason
from otterlm.families.facts import decoder_config

PARAMETERS = 32_000_000
"""A replica has at most so many parameters, 128 MB of them."""

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
    """Makes a model of the base's architecture in float32 on the CPU.

    It is as deep and wide as the base's configuration says, where that is not too large.

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
    """Yields the configuration as it is, and with less of everything."""
    yield copy.deepcopy(config)
    yield _smaller(config, FEWER | NARROWER)
    yield _smaller(config, FEWER)


def _smaller(config: Any, most: dict[str, int]) -> Any:
    small = copy.deepcopy(config)
    depth, reduced = config.num_hidden_layers, min(config.num_hidden_layers, most["num_hidden_layers"])
    for name, value in vars(small).items():
        # The list says what each layer is.
        if isinstance(value, list) and len(value) == depth:
            setattr(small, name, value[:reduced])
    for name, limit in most.items():
        value = getattr(small, name, None)
        if isinstance(value, int) and value > limit:
            setattr(small, name, limit)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if hasattr(small, name):
            setattr(small, name, 0)
    return small


def _build(base: PreTrainedModel, config: Any) -> PreTrainedModel:
    """Builds a model of the base's class; of a model that is more than a decoder, of the decoder's class."""
    config._attn_implementation = "eager"
    if not isinstance(base, PreTrainedModel):  # PEFT's
        return AutoModelForCausalLM.from_config(config)
    model_class: Any = type(base) if base.config is decoder_config(base) else type(base.get_decoder())
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
        model(torch.zeros(1, 1, dtype=torch.long))  # some sizes only show here that they do not fit
    return model
